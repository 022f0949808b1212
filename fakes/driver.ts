// SPDX-License-Identifier: Apache-2.0

/**
 * A compute driver for Podman: the flags, environment, socket, messages and containers of `openshell-driver-podman`,
 * written against the contract. It talks to any engine that serves libpod REST v4.0.0: Podman 4.3, Podman 5,
 * fakes/engine.ts.
 *
 *   bun fakes/driver.ts --bind-socket /run/me/driver.sock --podman-socket /run/podman/podman.sock
 *
 * It is correct where the first-party driver is known not to be: a second create of a sandbox is ALREADY_EXISTS and
 * does no harm, a container that vanishes takes its volume and secrets along, a failed create leaves nothing, a paused
 * container is really stopped, a watch has no limit of containers, and SIGTERM ends it although a watch is open. It
 * sees the sandboxes of its own network only, so that drivers can share an engine. What it lacks (a proxy for sandboxes,
 * user namespaces) it refuses by name.
 *
 * The parts, in the order in which a start passes them: settings (names); host (podman); server (socket) and
 * service; sandboxes with their creation (driver-config, resources, container) and their watch (snapshot, order).
 */
import { startQuickly } from "./quick-start.ts";
import { reach } from "./driver/host.ts";
import { EngineError } from "./driver/podman.ts";
import { HELP, readSettings, StartError } from "./driver/settings.ts";
import { Log } from "./log.ts";

startQuickly();

const VERSION = "0.0.112+fake";

async function main(argv: string[], env: NodeJS.ProcessEnv): Promise<void> {
  if (argv.includes("--version") || argv.includes("-V"))
    return console.log(`openshell-driver-podman ${VERSION}`);
  if (argv.includes("--help") || argv.includes("-h")) return console.log(HELP);
  const settings = readSettings(argv, env);
  const log = new Log(settings.logLevel).for("openshell_driver_podman");
  // Loading gRPC takes longer than all the rest of the start, so it begins before the engine has answered.
  const [{ podman, host }, { serve }] = await Promise.all([
    reach(settings, log),
    import("./driver/server.ts"),
  ]);
  await serve(VERSION, settings, podman, host, log);
}

try {
  await main(process.argv.slice(2), process.env);
} catch (error) {
  const isUsage = error instanceof StartError && error.exitCode === 2;
  const isKnown = error instanceof StartError || error instanceof EngineError;
  process.stderr.write(`${isUsage ? "error" : "Error"}: ${isKnown ? error.message : Bun.inspect(error)}\n`);
  process.exit(isUsage ? 2 : 1);
}
