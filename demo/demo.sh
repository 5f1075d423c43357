#!/usr/bin/env bash
# Three workloads, one policy, real traffic, everything visible: `./dev demo`.
#
# All of it happens in mount, network and process namespaces of its own, which end with this script however it
# ends; the host's network, its bpffs and its directories are not touched.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
villus=${VILLUS:-${DEV_BIN_DIR:-$here/../target/release}/villus}

die() { printf '%s\n' "demo: $*" >&2; exit 1; }

if [ "${1:-}" != inside ]; then
    [ -x "$villus" ] || die "$villus is missing: ./dev build makes it"
    for tool in bpftool ip nft socat unshare; do
        command -v "$tool" >/dev/null || die "$tool is missing: ./dev demo installs it"
    done
    [ "$(id -u)" = 0 ] || exec sudo -- env VILLUS="$villus" bash "${BASH_SOURCE[0]}"
    exec unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private \
        env VILLUS="$villus" bash "${BASH_SOURCE[0]}" inside
fi

# The first process of a namespace gets only the signals that it asks for.
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# Options of the environment are not the demo's.
for name in "${!VILLUS_@}" "${!CILIUM_@}"; do unset "$name"; done

home=/run/villus-demo
failed=0
if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi

title() { printf '\n%s── %s%s\n' "$bold" "$*" "$plain"; }
shown() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }
run() { shown "$@"; "$@"; }
# Commands are shown as they would be typed.
villus() { "$villus" "$@"; }

# ask WHO ADDRESS PORT SECONDS: what the server says within that time, or nothing.
ask() {
    ip netns exec "$1" timeout "$4" bash -c "exec 3<>/dev/tcp/$2/$3 && read -r line <&3 && echo \"\$line\"" 2>/dev/null || true
}

# attempt WHO ADDRESS PORT answered|silence
attempt() {
    local got=silence mark=$green patience=1
    [ "$4" = silence ] || patience=30
    [ "$(ask "$1" "$2" "$3" "$patience")" = welcome ] && got=answered
    [ "$got" = "$4" ] || { mark=$red failed=1; }
    sleep 0.2 # The events of it are printed first.
    printf '%s%-8s -> server %s port %s: %s%s%s\n' "$bold" "$1" "$2" "$3" "$mark" "$got" "$plain"
}

# Whether a command succeeds within a minute.
soon() {
    for _ in {1..600}; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    return 1
}

# One address of an endpoint.
address() { villus endpoint get "$1" -o "jsonpath={[0].status.networking.addressing[0].$2}"; }

mount -t tmpfs villus-demo /run
mount -t sysfs villus-demo /sys
mkdir -p "$home"
ip link set lo up
export VILLUS_SOCK=$home/villus.sock
places=(--bpf-root "$home/bpf" --lib-dir "$home/lib" --state-dir "$home/state")

title "A node: the agent, its store embedded"
shown villus agent --bpf-root "$home/bpf" …
"$villus" agent "${places[@]}" --socket-path "$VILLUS_SOCK" --ipv4-range 10.15.0.0/24 --ipv6-range fd15::/112 \
    2>"$home/agent.log" &
agent=$!
serves() { kill -0 "$agent" 2>/dev/null && villus status --brief; }
soon serves || die "the agent does not serve: $(cat "$home/agent.log")"

title "Three workloads in network namespaces, each with labels"
for name in client server intruder; do
    ip netns add "$name"
    run villus endpoint add --netns "$name" --name "$name" --labels "k8s:app=$name"
done
run villus endpoint list

v4=$(address server ipv4) v6=$(address server ipv6)
id=$(villus endpoint get server -o 'jsonpath={[0].id}')
for port in 8080 9090; do
    ip netns exec server socat "TCP6-LISTEN:$port,ipv6only=0,reuseaddr,fork" SYSTEM:'echo welcome' 2>/dev/null &
done
listening() { [ "$(ip netns exec server ss -Hltn | grep -cE ':(8080|9090) ')" -ge 2 ]; }
soon listening || die "the server does not listen"

title "Without a policy everything passes"
attempt intruder "$v4" 9090 answered

title "The policy: the client may reach port 8080 of the server, nothing else may reach it"
sed -n '/^spec/,$p' "$here/policy.yaml"
run villus policy import --wait "$here/policy.yaml"

title "Traffic, and the packet path's events as they happen"
shown villus monitor
villus monitor > >(tee "$home/events" | sed -u 's/^/    /') 2>/dev/null &
monitor=$!
sleep 0.5
attempt client "$v4" 8080 answered
attempt client "$v6" 8080 answered
attempt client "$v4" 9090 silence
attempt intruder "$v4" 8080 silence
attempt intruder "$v6" 8080 silence
soon grep -q 'drop (Policy denied)' "$home/events" || die "the monitor says nothing of what was denied"
kill "$monitor"
wait "$monitor" 2>/dev/null || true

title "The server's policy map, in words and in the kernel's bytes"
run villus bpf policy get "$id" "${places[@]:0:2}"
run bpftool map dump pinned "$home/bpf/tc/globals/$(printf 'cilium_policy_%05d' "$id")"

title "Why was the intruder denied?"
run villus why intruder server 8080/tcp

title "Everything is removed"
villus endpoint delete client server intruder
kill "$agent"
wait "$agent" || die "the agent did not end well: $(cat "$home/agent.log")"
villus cleanup "${places[@]}" >/dev/null
left=$(ls -A "$home/bpf/tc/globals" 2>/dev/null || true)$(ip -o link show | grep -v ': lo' || true)$(nft list tables)
[ -z "$left" ] || { printf 'left behind: %s\n' "$left" >&2; failed=1; }
[ "$failed" = 0 ] || die "something above is not as it should be"
echo "nothing is left: no pin, no device, no table"
