#!/bin/sh
# The probe: stands where the supervisor does when a driver is checked without a gateway. It prints, once, what the
# driver gave it, for the container's log, and then waits to be stopped. The token itself is never printed.
trap 'exit 0' TERM INT
# A check may want a workload that only SIGKILL ends.
[ "$PROBE_IS_STUBBORN" = yes ] && trap '' TERM INT
token="$OPENSHELL_FAKE_ROOT$OPENSHELL_SANDBOX_TOKEN_FILE"
workdir="$OPENSHELL_FAKE_ROOT/sandbox"
# The workspace may be another user's, and root here may lack the capability to write everywhere.
chmod o+rwx "$workdir"
echo started >>"$workdir/.openshell-probe"
tell() { base64 | sed "s/^/probe $1 /"; }
echo "probe begins"
env -0 | tell environment
printf '%s\n' "$@" | tell arguments
[ -f "$token" ] && echo "probe token $(stat -Lc '%a' "$token") $(sha256sum <"$token" | cut -d' ' -f1)"
echo "probe starts $(wc -l <"$workdir/.openshell-probe" | tr -d ' ')"
sleep 2147483 &
wait
