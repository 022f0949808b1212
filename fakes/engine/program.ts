// SPDX-License-Identifier: Apache-2.0

/** The program of a container: where its file is on the host, and how it is run. */
import { existsSync, mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { type Container, processEnvironment, rootfs } from "./container.ts";
import { fail } from "./http.ts";

const START_MS = 5_000;

/**
 * What conmon is to Podman: it waits for the container's process and keeps the exit code, whether or not the engine
 * lives. It leads the container's session, keeps its own signals away from the container's process, and ends with it.
 */
const MONITOR = `
umask 022
trap : HUP INT TERM
folder=$1 directory=$2; shift 2
cd "$directory"
(
  # $$ is the monitor's, here too. Without Linux' /proc a child is asked who its parent is.
  { read -r pid _ </proc/self/stat || pid=$(exec sh -c 'echo "$PPID"'); } 2>/dev/null
  echo "pid $pid" >"$folder/life" && exec "$@"
) >>"$folder/stdout.log" 2>>"$folder/stderr.log" </dev/null
echo "exit $?" >>"$folder/life"`;

/** Starts the program under a monitor of its own. */
export function spawnMonitor(container: Container): Bun.Subprocess {
  const { folder, spec, workingDirectory } = container;
  rmSync(lifeOf(container), { force: true });
  const directory = join(rootfs(container), workingDirectory);
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const [program = "", ...rest] = [...spec.entrypoint, ...spec.command];
  const command = [resolveProgram(container, program), ...rest];
  const monitor = Bun.spawn(["/bin/sh", "-c", MONITOR, "monitor", folder, directory, ...command], {
    env: processEnvironment(container),
    stdio: ["ignore", "ignore", "ignore"],
    detached: true,
  });
  monitor.unref();
  return monitor;
}

/** What the monitor notes of its program, a line each: its pid, and its exit code. */
const lifeOf = ({ folder }: Container): string => join(folder, "life");

/** A number that the monitor has noted. Of one that is killed while it writes there is half a line, which does not count. */
function noted(container: Container, what: "pid" | "exit"): number | undefined {
  const file = lifeOf(container);
  const life = existsSync(file) ? readFileSync(file, "utf8") : "";
  const [, number] = new RegExp(`^${what} (\\d+)\n`, "m").exec(life) ?? [];
  return number === undefined ? undefined : Number(number);
}

/** The pid of the program, once its monitor has noted it. */
export async function pidOf(container: Container, monitor: Bun.Subprocess): Promise<number> {
  const read = (): number => noted(container, "pid") ?? 0;
  const deadline = performance.now() + START_MS;
  for (let pid = 0; ; pid = read()) {
    // A monitor that has ended had a program.
    if (pid > 0 || monitor.exitCode !== null) return pid || read();
    if (performance.now() > deadline) {
      fail(500, "timeout", `conmon ${monitor.pid} reported no process within ${START_MS} ms`);
    }
    await Bun.sleep(1);
  }
}

/** The exit code that the monitor noted, and when, in nanoseconds; null if the monitor was killed. */
export function exitOf(container: Container): { code: number; at: bigint } | null {
  const code = noted(container, "exit");
  if (code === undefined) return null;
  return { code, at: BigInt(Math.round(statSync(lifeOf(container)).mtimeMs * 1e6)) };
}

/** The program's file on the host, found as the container's kernel and PATH would. */
export function resolveProgram(container: Container, program: string): string {
  const root = rootfs(container);
  const hasPath = program.includes("/");
  const candidates = hasPath
    ? [join(root, resolve("/", container.workingDirectory, program))]
    : (container.environment.PATH ?? "").split(":").map((folder) => join(root, folder, program));
  for (const path of candidates) {
    const file = statSync(path, { throwIfNoEntry: false });
    if (file?.isFile() && file.mode & 0o111) return path;
    if (file && hasPath) fail(500, "OCI permission denied", "crun: open executable: Permission denied");
  }
  return fail(
    500,
    "OCI runtime attempted to invoke a command that was not found",
    `crun: executable file \`${program}\` not found${hasPath ? "" : " in $PATH"}: No such file or directory`,
  );
}
