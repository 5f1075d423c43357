//! Reading a CiliumCIDRGroup: prefixes under a name.

use crate::{
    Kind, ProblemKind, Referent,
    element::read_cidr,
    metadata::{check_version, normalised, read_key, read_own_labels},
    read::{At, Reader, Schema},
    referent::Content,
};

const OBJECT: Schema = Schema {
    known: &["apiVersion", "kind", "metadata", "spec", "status"],
    refused: &[],
    elsewhere: &[("externalCIDRs", "put it under `spec`")],
};
const SPEC: Schema =
    Schema { known: &["externalCIDRs"], refused: &[], elsewhere: &[("cidrs", "write `externalCIDRs`")] };

pub(crate) fn read_group(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Referent> {
    let before = reader.problems.len();
    let fields = reader.fields(at, &OBJECT)?;
    check_version(reader, at, fields.get("apiVersion"), &["cilium.io/v2", "cilium.io/v2alpha1"]);
    let key = read_key(reader, at, fields.get("metadata"), Kind::CiliumCidrGroup);
    let labels = read_own_labels(reader, &fields);
    let mut prefixes = Vec::new();
    match fields.get("spec") {
        Some(spec) => {
            let cidrs = reader.fields(&spec, &SPEC)?.get("externalCIDRs");
            for item in cidrs.and_then(|at| reader.items(&at)).unwrap_or_default() {
                prefixes.extend(read_cidr(reader, &item));
            }
        }
        None => {
            let message = "spec is missing; list the prefixes under `spec.externalCIDRs`";
            reader.problem(at, ProblemKind::Missing, message);
        }
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    let key = key.filter(|_| reader.problems.len() == before)?;
    let object = normalised(at.node, &key);
    Some(Referent { key, content: Content::Group { labels, prefixes }, object })
}
