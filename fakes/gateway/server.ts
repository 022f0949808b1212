// SPDX-License-Identifier: Apache-2.0

/** A gateway's life with good settings: connect to the driver, open the listeners, serve until a signal, clean up. */
import * as grpc from "@grpc/grpc-js";
import { Log, type Logger } from "../log.ts";
import { apiServer } from "./api.ts";
import { Authenticator } from "./auth.ts";
import { Compute } from "./compute.ts";
import { RemoteDriver } from "./driver.ts";
import { Failure } from "./failure.ts";
import { Feeds } from "./feeds.ts";
import { bind, resolveListeners, serveHealth } from "./listeners.ts";
import { Sessions } from "./sessions.ts";
import { SshSessions } from "./ssh-sessions.ts";
import type { Settings } from "./settings.ts";
import { Store } from "./store.ts";
import { SupervisorApi } from "./supervisor-api.ts";
import { UserApi } from "./user-api.ts";

/**
 * Serves until SIGINT or SIGTERM.
 * @throws Failure for whatever stops the start, or goes wrong at the end
 */
export async function serve(
  settings: Settings,
  { version, dialSeconds }: { version: string; dialSeconds: number },
) {
  // What it would print is reported in the gateway's own words.
  grpc.setLogVerbosity(grpc.logVerbosity.NONE);
  const output = new Log(settings.logLevel);
  const log = output.for("openshell_server");
  describe(settings, output.for("openshell_server::cli"));

  const authenticator = new Authenticator(settings);
  const store = new Store(settings.databaseUrl);
  const feeds = new Feeds();
  output.onSandboxLine(({ sandboxId, level, target, message }) =>
    feeds.line({
      sandbox_id: sandboxId,
      timestamp_ms: String(Date.now()),
      level: level.toUpperCase(),
      target,
      message,
      source: "gateway",
      fields: {},
    }),
  );

  log.info("Using compute driver", { driver: settings.driver });
  if (settings.socketPath === "")
    throw Failure.config(`remote compute driver '${settings.driver}' requires socket_path`);
  const computeLog = output.for("openshell_server::compute");
  const driver = await RemoteDriver.connect(settings.driver, settings.socketPath, dialSeconds, computeLog);
  const sessions = new Sessions(output.for("openshell_server::supervisor_session"));
  const compute = new Compute({ driver, store, feeds, sessions, log: computeLog });
  sessions.events = {
    exists: (id) => store.sandboxes.get(id) !== undefined,
    connected: (id, instanceId) => compute.connected(id, instanceId),
    disconnected: (id) => compute.disconnected(id),
  };

  const { tokens } = authenticator;
  const started = Promise.withResolvers<void>();
  const parts = {
    authenticator,
    users: new UserApi({
      version,
      tokens,
      driver,
      store,
      feeds,
      sessions,
      sshSessions: new SshSessions(store, sessions, settings.ssh),
      compute,
      log: output.for("openshell_server::grpc::sandbox"),
    }),
    supervisors: new SupervisorApi({ tokens, store, feeds, sessions, compute }),
    started: started.promise,
  };
  const servers: grpc.Server[] = [];
  for (const listener of await resolveListeners(settings.bind, driver.name, driver.requirements)) {
    const server = apiServer(parts, listener.scope);
    await bind(server, listener, settings.tls, log);
    servers.push(server);
  }

  await compute.startSweep();
  compute.startLoops();
  if (settings.health) {
    serveHealth(settings.health, version, () => store.ping());
    log.info("Health server listening", { address: `${settings.health.host}:${settings.health.port}` });
  } else log.info("Health server disabled");
  started.resolve();

  await signalled("SIGINT", "SIGTERM");
  log.info("Shutdown signal received; stopping gateway");
  for (const server of servers) server.tryShutdown(() => {});
  await compute.shutdown();
  store.close();
}

function describe(settings: Settings, log: Logger): void {
  if (settings.tls) log.info("TLS enabled — listening on encrypted HTTPS");
  else log.warn("TLS disabled — listening on plaintext HTTP");
  if (settings.tls?.clientCaPath) log.info("TLS client certificate verification enabled");
  if (settings.mtlsAuth) log.info("mTLS user authentication enabled");
  if (settings.allowUnauthenticatedUsers) {
    log.warn(
      "Unauthenticated user access enabled — only use this for trusted local development or a fully trusted fronting proxy",
    );
  } else if (!settings.mtlsAuth && !settings.jwt) {
    log.warn(
      "Neither mTLS user auth nor OIDC nor sandbox JWT auth is configured — the gateway has no authentication mechanism",
    );
  }
  log.info("Starting OpenShell server", { bind: `${settings.bind.host}:${settings.bind.port}` });
}

const signalled = (...signals: NodeJS.Signals[]) =>
  new Promise<void>((resolve) => {
    for (const signal of signals) process.on(signal, () => resolve());
  });
