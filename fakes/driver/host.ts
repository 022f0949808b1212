// SPDX-License-Identifier: Apache-2.0

/** The engine at start: reached, its network made, and what its host is like for whoever calls from a sandbox. */
import { isIP } from "node:net";
import type { GatewayListenerRequirement } from "../../proto/v0.0/types/openshell/compute/v1/GatewayListenerRequirement.ts";
import type { Logger } from "../log.ts";
import { precondition } from "../status.ts";
import { isDuplicate, messageOf, Podman } from "./podman.ts";
import { type Settings, StartError } from "./settings.ts";

const RETRIES = 5;
const RETRY_MS = 2_000;
const ALIASES = ["host.containers.internal", "host.openshell.internal"];

export interface Host {
  rootless: boolean;
  rootlessNetworkCmd: string;
  /** The host's address on the sandboxes' bridge, where there is one. */
  bridgeAddress: string | null;
}

interface Info {
  host: {
    cgroupVersion: string;
    networkBackend?: string;
    rootlessNetworkCmd?: string;
    security: { rootless: boolean };
  };
}

/** Podman and its host. @throws EngineError when Podman does not answer within some 10 s, StartError */
export async function reach(settings: Settings, log: Logger): Promise<{ podman: Podman; host: Host }> {
  const podman = await connect(settings, log);
  return { podman, host: await prepare(settings, podman, log) };
}

async function connect(settings: Settings, log: Logger): Promise<Podman> {
  const podman = new Podman(settings.podmanSocket);
  for (let attempt = 1; ; attempt++) {
    try {
      await podman.ping();
      return podman;
    } catch (error) {
      if (attempt > RETRIES) throw error;
      const fields = { attempt, max_retries: RETRIES, error: messageOf(error) };
      log.warn("Podman socket not ready, retrying", fields);
      await Bun.sleep(RETRY_MS);
    }
  }
}

/** Makes the sandboxes' network, and looks what the host is like. */
async function prepare({ networkName }: Settings, podman: Podman, log: Logger): Promise<Host> {
  const body = { name: networkName, driver: "bridge", dns_enabled: true };
  const [info] = await Promise.all([
    podman.get<Info>("/info").catch((error: unknown) => {
      throw new StartError(`connection error: failed to query Podman system info: ${messageOf(error)}`);
    }),
    podman.call("POST", "/networks/create", { body }).catch((error: unknown) => {
      if (!isDuplicate(error)) throw error;
    }),
  ]);
  const { cgroupVersion, security, rootlessNetworkCmd = "", networkBackend = "" } = info.host;
  const { rootless } = security;
  log.info("Connected to Podman", {
    cgroup_version: cgroupVersion,
    network_backend: networkBackend,
    rootless,
  });
  if (cgroupVersion !== "v2") {
    log.warn("cgroups v2 is not in use; limits may not be enforced", { cgroup_version: cgroupVersion });
  }
  interface Network {
    subnets?: { gateway?: string }[] | null;
  }
  const { subnets } = await podman.get<Network>(`/networks/${networkName}/json`);
  const bridgeAddress = rootless ? null : (subnets?.[0]?.gateway ?? null);
  return { rootless, rootlessNetworkCmd: rootlessNetworkCmd.trim(), bridgeAddress };
}

/** Where the gateway must listen for sandboxes of this engine. @throws Status FAILED_PRECONDITION */
export function listenerRequirements(settings: Settings, host: Host): GatewayListenerRequirement[] {
  const { grpcEndpoint, gatewayPort, hostGatewayIp, networkName } = settings;
  if (!URL.canParse(grpcEndpoint)) {
    throw precondition(`invalid Podman gateway callback endpoint '${grpcEndpoint}': not a URL`);
  }
  const url = new URL(grpcEndpoint);
  if (!ALIASES.includes(url.hostname)) return [];
  const port = Number(url.port || (url.protocol === "https:" ? 443 : 80));
  if (port !== gatewayPort) {
    throw precondition(
      `Podman local callback endpoint '${grpcEndpoint}' uses port ${port}, but the gateway primary listener uses ` +
        `port ${gatewayPort}; configure grpc_endpoint with the gateway primary listener port`,
    );
  }
  if (process.platform !== "linux") {
    const reason = "Podman machine callback forwarding terminates on gateway loopback";
    return [{ reason, loopback_interface: {} }];
  }
  const { rootless, rootlessNetworkCmd, bridgeAddress } = host;
  if (rootless && rootlessNetworkCmd !== "pasta") {
    throw precondition(
      `Podman rootless network helper '${rootlessNetworkCmd || "<missing>"}' does not support direct local gateway ` +
        "callbacks; configure pasta or use an explicitly remote grpc_endpoint",
    );
  }
  if (rootless && !hostGatewayIp) {
    const reason = "Podman rootless pasta callback uses the host default-route interface";
    return [{ reason, default_route_interface: {} }];
  }
  const address = hostGatewayIp || bridgeAddress;
  if (!address) {
    throw precondition(
      `Podman network '${networkName}' did not report a host bridge gateway address for local callback alias '${url.hostname}'`,
    );
  }
  if (isIP(address) === 0) {
    throw precondition(`Podman callback gateway address '${address}' is invalid: invalid IP address syntax`);
  }
  const exact = isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
  return [{ reason: `Podman network '${networkName}' host gateway`, exact_bind_address: exact }];
}
