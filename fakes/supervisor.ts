// SPDX-License-Identifier: Apache-2.0

/**
 * A stand-in for `openshell-sandbox`, the supervisor in a sandbox: same environment, flags and gateway protocol. It
 * starts the main process, holds the session that makes the sandbox Ready, and serves commands over SSH in relays.
 *
 * It isolates nothing: no policy, proxy, network namespace or Landlock. Two ways to run it:
 *   - in a container, compiled with `bun build --compile` (the image needs glibc and a shell);
 *   - as a plain process, `bun fakes/supervisor.ts`, with OPENSHELL_FAKE_ROOT naming the folder that holds the
 *     container's tree. Then the token, TLS files, the working folder and HOME are looked up in that folder, but commands
 *     see the host's file system: they reach the workspace by relative paths, and where a command's own words name it,
 *     /sandbox. They inherit the variable, by which fakes/engine.ts finds them. OPENSHELL_FAKE_HOSTS (`name=ip,...`)
 *     stands for the container's /etc/hosts.
 *
 * The parts: settings; run; gateway and log; user and processes; main-process and main-session; session, relays, ssh.
 */
import { startQuickly } from "./quick-start.ts";
import { readFlags, readSettings, UsageError, USAGE } from "./supervisor/settings.ts";

startQuickly();

const VERSION = "0.0.112+fake";

// An engine may stop a sandbox right after its start, and a container's main process gets no signal that it does not
// catch. Until the rest is loaded there is nothing to end but this process.
let end = (): void => process.exit(0);
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => end());

try {
  const { flags, command } = readFlags(process.argv.slice(2));
  if (flags.has("version")) console.log(`openshell-sandbox ${VERSION}`);
  else if (flags.has("help")) console.log(USAGE);
  else {
    const settings = readSettings(flags, command, process.env);
    const { run } = await import("./supervisor/run.ts");
    process.exit(await run(settings, (ending) => (end = ending)));
  }
} catch (error) {
  console.error(`openshell-sandbox: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(error instanceof UsageError ? 2 : 1);
}
