// SPDX-License-Identifier: Apache-2.0

/**
 * A fake OpenShell gateway, run like the real one: `bun fakes/gateway.ts --config FILE --db-url sqlite:PATH?mode=rwc`.
 *
 * It drives a standalone compute driver through its Unix socket, keeps sandboxes in SQLite, holds the supervisors'
 * sessions and serves the public API, with the real program's flags, environment, file, messages and exit codes. What it
 * lacks (in-tree drivers, OIDC, Postgres, credential providers, interceptors, HTTP service URLs, metrics) it refuses by
 * name instead of pretending. `openshell-gateway` in messages is the program that it stands for.
 *
 * The parts, in the order in which a start passes them: settings, toml, store, driver, listeners, compute (with phases
 * and translation), sessions, exec, api (user-api, supervisor-api; auth, validation). `generate-certs` is certificates.
 */
import { startQuickly } from "./quick-start.ts";
import { Failure, frame, UsageError } from "./gateway/failure.ts";
import { Log } from "./log.ts";
import { Flags, HELP, readSettings } from "./gateway/settings.ts";

startQuickly();

const VERSION = "0.0.112+fake";
const DEFAULT_DIAL_SECONDS = 30;

/** Runs the command line. What is heavy to load is loaded once the settings are known to be good. */
async function main(argv: string[], env: NodeJS.ProcessEnv): Promise<void> {
  if (argv.includes("--version") || argv.includes("-V")) return console.log(`openshell-gateway ${VERSION}`);
  if (argv.includes("--help") || argv.includes("-h") || argv[0] === "help") return console.log(HELP);
  if (argv[0] === "generate-certs") {
    const { generateCerts } = await import("./gateway/certificates.ts");
    return generateCerts(
      argv.slice(1),
      env,
      new Log(env.RUST_LOG ?? "info").for("openshell_server::certgen"),
    );
  }
  const settings = readSettings(new Flags(argv, env), env);
  const dial = dialSeconds(env.OPENSHELL_FAKE_DIAL_SECONDS);
  const { serve } = await import("./gateway/server.ts");
  await serve(settings, { version: VERSION, dialSeconds: dial });
}

/** The fake's only setting of its own: how long it waits for the driver's socket, in seconds. */
function dialSeconds(value: string | undefined): number {
  if (value === undefined) return DEFAULT_DIAL_SECONDS;
  const seconds = Number(value);
  if (value.trim() !== "" && seconds >= 0 && Number.isFinite(seconds)) return seconds;
  throw new UsageError(`invalid value '${value}' for OPENSHELL_FAKE_DIAL_SECONDS: not a number of seconds`);
}

try {
  await main(process.argv.slice(2), process.env);
  process.exit(0);
} catch (error) {
  if (error instanceof UsageError) {
    process.stderr.write(`${error.message}\n`);
    process.exit(2);
  }
  process.stderr.write(error instanceof Failure ? `${frame(error.message)}\n` : `${Bun.inspect(error)}\n`);
  process.exit(1);
}
