//! `policy learn` and `policy preview` without an agent: what they print, and with which code they end.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::{fs, path::PathBuf};

use common::{Said, command, said};

/// Who asks whom on which TCP port, and what became of it.
fn flow(source: &str, destination: &str, port: u16, verdict: &str, second: u32) -> String {
    let end = |app: &str| match app {
        "world" => r#"{"identity":2,"labels":["reserved:world"]}"#.to_owned(),
        app => format!(
            r#"{{"identity":{},"namespace":"shop","labels":["k8s:app={app}","k8s:io.kubernetes.pod.namespace=shop"]}}"#,
            1000 + app.len()
        ),
    };
    format!(
        concat!(
            r#"{{"flow":{{"time":"2026-01-31T10:00:{:02}Z","verdict":"{}","IP":{{"source":"192.0.2.7","#,
            r#""destination":"10.0.0.2"}},"l4":{{"TCP":{{"source_port":40000,"destination_port":{},"#,
            r#""flags":{{"SYN":true}}}}}},"source":{},"destination":{},"event_type":{{"type":5}},"#,
            r#""traffic_direction":"INGRESS","is_reply":false}},"node_name":"n1"}}"#,
            "\n"
        ),
        second,
        verdict,
        port,
        end(source),
        end(destination)
    )
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let flows = [
            flow("client", "web", 80, "FORWARDED", 1),
            flow("client", "web", 80, "FORWARDED", 9),
            flow("world", "web", 443, "AUDIT", 5),
            flow("web", "db", 5432, "FORWARDED", 3),
        ];
        place.write("node1.log", &flows[..2].concat());
        place.write("node2.log", &format!("{}not a flow\n", flows[2..].concat()));
        fs::create_dir(place.path("policies")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Said {
        said(&command(args).current_dir(self.0.path()).env("VILLUS_SOCK", "/nowhere").output().unwrap())
    }
}

const FLOWS: [&str; 3] = ["--flows", "node1.log", "node2.log"];

fn args<'a>(first: &[&'a str], second: &[&'a str]) -> Vec<&'a str> {
    [first, second].concat()
}

#[test]
fn a_draft_is_made_from_the_files_of_many_nodes() {
    let place = Place::new();
    let said = place.run(&args(&["policy", "learn", "--selector", "app=web"], &FLOWS));
    assert_eq!((said.code, said.err.lines().count()), (0, 2), "{said:?}");
    assert!(said.err.contains("node2.log:3: ") && said.err.contains("1 lines could not be read"), "{said:?}");
    assert_eq!(
        said.out,
        r#"# Drafted by villus policy learn from 4 flows, first seen 2026-01-31T10:00:01Z, last 2026-01-31T10:00:09Z.
# It allows what was seen and denies the rest: read it before it is imported.
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: "web-learned"
  namespace: "shop"
spec:
  endpointSelector:
    matchLabels:
      any:app: "web"
  ingress:
    - fromEndpoints:
        # 2 flows, first seen 2026-01-31T10:00:01Z, last 2026-01-31T10:00:09Z
        - matchLabels:
            k8s:app: "client"
      toPorts:
        - ports:
            - port: "80" # 2 flows, first seen 2026-01-31T10:00:01Z, last 2026-01-31T10:00:09Z
              protocol: TCP
    - fromCIDR:
        - "192.0.2.7/32" # 1 flow, seen 2026-01-31T10:00:05Z
      toPorts:
        - ports:
            - port: "443" # 1 flow, seen 2026-01-31T10:00:05Z
              protocol: TCP
  egress:
    - toEndpoints:
        # 1 flow, seen 2026-01-31T10:00:03Z
        - matchLabels:
            k8s:app: "db"
      toPorts:
        - ports:
            - port: "5432" # 1 flow, seen 2026-01-31T10:00:03Z
              protocol: TCP
"#
    );
    place.write("draft.yaml", &said.out);
    assert_eq!(place.run(&["policy", "validate", "draft.yaml"]).code, 0);
    let backwards = ["--flows", "node2.log", "node1.log"];
    let again = place.run(&args(&["policy", "learn", "--selector", "app=web"], &backwards));
    assert_eq!(again.out, said.out, "the order of files does not matter");
    let offline = args(&["policy", "preview", "draft.yaml", "--policies", "policies"], &FLOWS);
    let preview = place.run(&offline);
    assert_eq!(preview.code, 0, "{preview:?}");
    assert!(
        preview.out.ends_with("of 3 different flows 0 would be denied, 0 audited, 0 newly allowed\n"),
        "{preview:?}"
    );
}

#[test]
fn a_preview_names_entries_and_flows_and_ends_with_its_code() {
    let place = Place::new();
    place.write(
        "web.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  \
         endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    \
         toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n",
    );
    let said = place.run(&args(&["policy", "preview", "web.yaml", "--policies", "policies"], &FLOWS));
    assert_eq!(
        said.out,
        "\
POLICY                         CHANGE
CiliumNetworkPolicy shop/web   added

ENDPOINT   LABELS                                             ENTRIES   ADDED   REMOVED   ALTERED   INGRESS            EGRESS
-          k8s:app=web,k8s:io.kubernetes.pod.namespace=shop   2 -> 2    1       1         0         free -> enforced   free

ENDPOINT   ENTRY     POLICY   DIRECTION   IDENTITY   LABELS                                                PORT/PROTO
-          added     allow    Ingress     -          k8s:app=client,k8s:io.kubernetes.pod.namespace=shop   80/TCP
-          removed   allow    Ingress     ANY                                                              ANY

VERDICT             DIRECTION   SOURCE      DESTINATION                                        PORT/PROTO   SEEN   LAST SEEN              BY
allowed -> denied   Ingress     192.0.2.7   k8s:app=web,k8s:io.kubernetes.pod.namespace=shop   443/TCP      1      2026-01-31T10:00:05Z   CiliumNetworkPolicy shop/web spec (web.yaml:5)

1 of 3 endpoints would differ; of 3 different flows 1 would be denied, 0 audited, 0 newly allowed
"
    );
    assert_eq!(said.code, 4, "{said:?}");
    fs::rename(place.path("web.yaml"), place.path("policies/web.yaml")).unwrap();
    let gone = args(&["policy", "preview", "--delete", "web", "--policies", "policies"], &FLOWS);
    let said = place.run(&gone);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("CiliumNetworkPolicy shop/web   deleted"), "{said:?}");
    assert!(said.out.contains("denied -> allowed"), "{said:?}");
    let json = place.run(&[gone.as_slice(), &["-o", "jsonpath={.flows[0].after}"]].concat());
    assert_eq!(json.out.trim(), "allowed", "{json:?}");
    let unknown = args(&["policy", "preview", "--delete", "other", "--policies", "policies"], &FLOWS);
    assert!(place.run(&unknown).fails(1).contains("no policy other"));
}

#[test]
fn wrong_questions_are_told_what_is_wrong() {
    let place = Place::new();
    place.write("bad.yaml", "kind: CiliumNetworkPolicy\n");
    let offline = ["--policies", "policies", "--flows", "node1.log"];
    assert!(place.run(&args(&["policy", "preview", "bad.yaml"], &offline)).fails(1).contains("bad.yaml"));
    let missing = ["policy", "learn", "--selector", "app=web", "--flows", "nowhere.log"];
    assert!(place.run(&missing).fails(1).contains("cannot read nowhere.log"));
    let nobody = ["policy", "learn", "--selector", "app=nobody", "--flows", "node1.log"];
    assert!(place.run(&nobody).fails(1).contains("no flow that counts is from or to any:app=nobody"));
    place.run(&["policy", "learn", "--flows", "node1.log"]).fails(2);
    place.run(&["policy", "preview"]).fails(2);
    let bare = place.run(&["policy", "learn", "--selector", "app=web"]);
    assert!(bare.fails(1).contains("the agent does not answer"));
}
