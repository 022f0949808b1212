// SPDX-License-Identifier: Apache-2.0

/**
 * The connection to the gateway, and how its errors read.
 */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import * as grpc from "@grpc/grpc-js";
import { codeName, openshell } from "../../proto/contract.ts";
import { raisedWindows } from "../../proto/raised-windows.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { Log } from "./log.ts";
import { rooted, type Settings } from "./settings.ts";

/** Delays between two tries, in milliseconds. The real supervisor retries a session after 1 s to 30 s. */
export const RETRY = { first: 100, max: 2_000 };
/** How long the gateway may take to be there, or to answer a hello, in milliseconds. */
export const ACCEPT_DEADLINE = 10_000;

/** The way to the gateway: one connection for the session, its relays, the logs and the report. */
export class Gateway {
  readonly client: OpenShellClient;
  #token: string;

  constructor(settings: Settings) {
    const { protocol, hostname, port } = new URL(settings.endpoint);
    const host = settings.hosts.get(hostname) ?? hostname;
    const name = settings.serverName || hostname;
    const options: grpc.ClientOptions = {
      "grpc.initial_reconnect_backoff_ms": RETRY.first,
      "grpc.max_reconnect_backoff_ms": RETRY.max,
      "grpc.keepalive_time_ms": 10_000,
      "grpc.keepalive_timeout_ms": 20_000,
      "grpc.service_config_disable_resolution": 1,
      // HTTP_PROXY and the like belong to the user's processes.
      "grpc.enable_http_proxy": 0,
    };
    const read = (path: string) => readFileSync(rooted(settings, path));
    const secure = protocol === "https:";
    // Bun refuses an IP address as TLS server name, and the name in the certificate may not be the one dialled.
    if (secure) options["grpc.ssl_target_name_override"] = isIP(name) ? "localhost" : name;
    if (secure) options["grpc.default_authority"] = isIP(name) ? "localhost" : name;
    const credentials = secure
      ? grpc.credentials.createSsl(read(settings.tls.ca), read(settings.tls.key), read(settings.tls.cert))
      : grpc.credentials.createInsecure();
    this.#token = settings.token || read(settings.tokenFile).toString().trim();
    const address = `${host}:${port || (secure ? 443 : 80)}`;
    this.client = new (openshell().OpenShell)(address, raisedWindows(credentials), options);
  }

  /** The credentials of one call. With `waitForReady` the call waits while the gateway cannot be reached. */
  metadata(options: grpc.MetadataOptions = {}): grpc.Metadata {
    const metadata = new grpc.Metadata(options);
    metadata.set("authorization", `Bearer ${this.#token}`);
    return metadata;
  }

  /** Waits for the connection, for ever: a sandbox may be there before its gateway. */
  async connected(log: Log, stopped: AbortSignal): Promise<void> {
    while (!stopped.aborted) {
      const error = await new Promise<Error | undefined>((resolve) =>
        this.client.waitForReady(Date.now() + ACCEPT_DEADLINE, resolve),
      );
      if (!error) return;
      log.write("warn", `no connection to the gateway yet: ${error.message}`);
    }
  }
}

/** An error in one line, a gRPC error with its code. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code, details } = error as Partial<grpc.ServiceError>;
  return typeof code === "number" ? `${codeName(code)} ${details}` : error.message;
}
