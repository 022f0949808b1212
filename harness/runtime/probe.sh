#!/bin/sh
# The probe: stands where the supervisor does when a driver is checked without a gateway. It says, once, how often it was
# started, and on SIGUSR1 what the driver gave it, both for the container's log; and it waits to be stopped. The token
# itself is never printed.
# Hundreds of it run in one round of checks, so it starts few programs unless it is asked.
trap 'kill -KILL $!; exit 0' TERM INT
# A check may want a workload that only SIGKILL ends.
[ "$PROBE_IS_STUBBORN" = yes ] && trap '' TERM INT
token="$OPENSHELL_FAKE_ROOT$OPENSHELL_SANDBOX_TOKEN_FILE"
workdir="$OPENSHELL_FAKE_ROOT/sandbox"
marks="$workdir/.openshell-probe"
tell() {
  # Its arguments, and after an empty one its environment.
  echo "probe given"
  { [ $# -eq 0 ] || printf '%s\0' "$@"; printf '\0'; env -0; } | base64
  if [ -f "$token" ]; then
    sum=$(sha256sum <"$token")
    echo "probe token $(stat -Lc '%a' "$token") ${sum%% *}"
  fi
  echo "probe told"
}
trap 'tell "$@"' USR1
# The workspace may be another user's, and root here may lack the capability to write everywhere.
{ echo started >>"$marks"; } 2>/dev/null || { chmod o+rwx "$workdir" && echo started >>"$marks"; }
starts=0
while read -r _; do starts=$((starts + 1)); done <"$marks"
echo "probe starts $starts"
# A process that is stopped is less work than a sleep, and ends no wait either. $$ is the parent's, here too.
{ read -r self _ </proc/self/stat && while kill -STOP "$self"; do :; done; exec sleep 2147483; } 2>/dev/null &
# A signal ends a wait.
while kill -0 $! 2>/dev/null; do wait; done
