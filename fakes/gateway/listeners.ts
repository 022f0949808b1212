// SPDX-License-Identifier: Apache-2.0

/**
 * Where the gateway listens: its own address for everything, the addresses that the driver asks for (only for what
 * sandboxes call), and a plain HTTP port for health checks.
 */
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { isIP, isIPv4 } from "node:net";
import * as grpc from "@grpc/grpc-js";
import type { GatewayListenerRequirement__Output } from "../../proto/v0.0/types/openshell/compute/v1/GatewayListenerRequirement.ts";
import type { Logger } from "../log.ts";
import { Failure, osError } from "./failure.ts";
import type { Address, Settings } from "./settings.ts";
import { parseAddress } from "./toml.ts";

export interface Listener extends Address {
  /** "callback": only methods that sandboxes may call. */
  scope: "primary" | "callback";
  reason: string;
}

// Which

/**
 * The listeners to open: the primary one first, then one for each requirement that no earlier one covers.
 * @throws Failure for a requirement that cannot be met, with the real program's message
 */
export async function resolveListeners(
  primary: Address,
  driver: string,
  requirements: GatewayListenerRequirement__Output[],
): Promise<Listener[]> {
  const wanted = requirements.map((requirement) => parseRequirement(requirement, driver));
  const needsRoute = wanted.some(({ selector }) => selector === "default_route_interface");
  const route = needsRoute ? await defaultRouteAddress() : "";

  const listeners: Listener[] = [{ ...primary, scope: "primary", reason: "" }];
  // Exact addresses first, so that they may cover what the others resolve to.
  for (const kind of ["exact_bind_address", "default_route_interface", "loopback_interface"] as const) {
    for (const { selector, exact, reason } of wanted) {
      if (selector !== kind) continue;
      const host = kind === "loopback_interface" ? "127.0.0.1" : route;
      const address = exact ?? { host, port: primary.port };
      if (kind === "default_route_interface" && !isPrivate(host)) {
        throw Failure.config(
          `compute driver '${driver}' requested the gateway default-route interface, but its resolved address ${host} is not a private IPv4 address (reason: ${reason})`,
        );
      }
      checkAddress(address, primary);
      if (!listeners.some((existing) => covers(existing, address))) {
        listeners.push({ ...address, scope: "callback", reason });
      }
    }
  }
  return listeners;
}

interface Wanted {
  selector: NonNullable<GatewayListenerRequirement__Output["selector"]>;
  exact?: Address;
  reason: string;
}

function parseRequirement(
  { selector, exact_bind_address, reason }: GatewayListenerRequirement__Output,
  driver: string,
): Wanted {
  const refuse = (what: string) =>
    Failure.execution(`failed to create compute runtime: compute driver '${driver}' returned ${what}`);
  if (!selector) throw refuse("a gateway listener requirement without a selector");
  if (selector !== "exact_bind_address") return { selector, reason };
  const exact = parseAddress(exact_bind_address ?? "");
  if (exact) return { selector, exact, reason };
  throw refuse(`invalid gateway listener address '${exact_bind_address}': invalid socket address syntax`);
}

function checkAddress(address: Address, primary: Address): void {
  const refuse = (what: string) => Failure.config(`compute driver requested ${what}`);
  if (isWildcard(address.host)) throw refuse(`wildcard gateway listener ${shown(address)}`);
  if (/^(22[4-9]|23\d)\.|^ff/i.test(address.host))
    throw refuse(`multicast gateway listener ${shown(address)}`);
  if (address.port === 0) throw refuse(`zero-port gateway listener ${shown(address)}`);
  if (address.port !== primary.port) {
    throw refuse(
      `gateway listener ${shown(address)} with port ${address.port}, but the primary listener uses port ${primary.port}`,
    );
  }
}

const isWildcard = (host: string) => host === "0.0.0.0" || host === "::";
const isPrivate = (host: string) => isIPv4(host) && /^(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.)/.test(host);
const covers = (existing: Address, asked: Address) =>
  existing.port === asked.port &&
  (existing.host === asked.host || (isWildcard(existing.host) && isIP(existing.host) === isIP(asked.host)));
const shown = ({ host, port }: Address) => (isIPv4(host) ? `${host}:${port}` : `[${host}]:${port}`);

/** The own address towards the default route. Connecting a datagram socket looks it up and sends nothing. */
function defaultRouteAddress(): Promise<string> {
  return new Promise((resolve, reject) => {
    const probe = createSocket("udp4");
    const fail = (error: Error) => {
      probe.close();
      reject(Failure.config(`failed to resolve IPv4 default route: ${osError(error)}`));
    };
    probe.once("error", fail);
    probe.connect(9, "192.0.2.1", () => {
      const { address } = probe.address();
      probe.close();
      resolve(address);
    });
  });
}

// Opening

/**
 * Binds one listener for a server.
 * @throws Failure when the address cannot be had, or a TLS file not be read
 */
export async function bind(
  server: grpc.Server,
  listener: Listener,
  tls: Settings["tls"],
  log: Logger,
): Promise<void> {
  const credentials = tls ? tlsCredentials(tls) : grpc.ServerCredentials.createInsecure();
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(shown(listener), credentials, (error) => {
      if (!error) return resolve();
      reject(Failure.transport(`failed to bind to ${shown(listener)}: ${osError(error)}`));
    });
  });
  const callback = listener.scope === "callback";
  log.info("Gateway listener bound", {
    address: shown(listener),
    listener_purpose: callback ? "compute-driver-callback" : "primary",
    ...(callback && { reason: listener.reason }),
    authorization_scope: callback ? "sandbox-callable-grpc-only" : "full-multiplexed-api",
  });
}

/** With a client CA every client has to show a certificate of it. */
function tlsCredentials({
  certPath,
  keyPath,
  clientCaPath,
}: NonNullable<Settings["tls"]>): grpc.ServerCredentials {
  const read = (path: string, what: string) => {
    try {
      return readFileSync(path);
    } catch (error) {
      throw Failure.tls(`failed to read ${what} from ${path}: ${osError(error)}`);
    }
  };
  const pair = { cert_chain: read(certPath, "certificate"), private_key: read(keyPath, "private key") };
  const ca = clientCaPath === undefined ? null : read(clientCaPath, "client CA");
  return grpc.ServerCredentials.createSsl(ca, [pair], ca !== null);
}

/**
 * Serves /healthz (the process lives), /readyz and /health (the store answers). The driver is in none of them.
 * @param ping throws when the store does not answer
 */
export function serveHealth(address: Address, version: string, ping: () => void): { stop(): void } {
  try {
    const server = Bun.serve({
      hostname: address.host,
      port: address.port,
      routes: {
        "/healthz": () => new Response(),
        "/readyz": () => readiness(version, ping),
        "/health": () => readiness(version, ping),
      },
      fetch: () => new Response(null, { status: 404 }),
    });
    return { stop: () => void server.stop(true) };
  } catch (error) {
    throw Failure.transport(`failed to bind health port ${shown(address)}: ${osError(error)}`);
  }
}

function readiness(version: string, ping: () => void): Response {
  const startedAt = performance.now();
  let failed = false;
  try {
    ping();
  } catch {
    failed = true;
  }
  const status = failed ? "unhealthy" : "healthy";
  const database = {
    status,
    latency_ms: Math.round(performance.now() - startedAt),
    error: failed ? "database unavailable" : null,
  };
  return Response.json({ status, version, checks: { database } }, { status: failed ? 503 : 200 });
}
