// SPDX-License-Identifier: Apache-2.0

/** Networks. Each is the host's loopback: that is where the process of a "container" reaches the gateway. */
import { timestamp } from "./clock.ts";
import type { Events } from "./events.ts";
import { checkName, fail, type Filters, hasLabels, matcher } from "./http.ts";
import type { Collection, State } from "./state.ts";

export const DEFAULT_NETWORK = "podman";

export interface Network {
  name: string;
  id: string;
  driver: string;
  network_interface: string;
  created: string;
  subnets: { subnet: string; gateway: string }[];
  ipv6_enabled: boolean;
  internal: boolean;
  dns_enabled: boolean;
  labels?: Record<string, string>;
  ipam_options: { driver: string };
}

const FILTERS: Filters<Network> = {
  label: ({ labels = {} }, wanted) => hasLabels(labels, wanted),
  name: ({ name }, wanted) => wanted.some((want) => new RegExp(want).test(name)),
  id: ({ id }, wanted) => wanted.some((want) => id.startsWith(want)),
};

export class Networks {
  readonly #all: Collection<Network>;

  constructor(
    private readonly state: State,
    private readonly events: Events,
  ) {
    this.#all = state.collection("networks");
    if (!this.#all.has(DEFAULT_NETWORK)) this.create({ name: DEFAULT_NETWORK });
  }

  create(wanted: Partial<Network>): Network {
    const number = this.#all.size;
    const name = wanted.name || `podman${number}`;
    if (this.#all.has(name)) fail(409, "network already exists", `network name ${name} already used`);
    checkName(name, `network name ${name} invalid`, 400);
    const network: Network = {
      name,
      id: new Bun.CryptoHasher("sha256").update(name).update(this.state.root).digest("hex"),
      driver: wanted.driver || "bridge",
      network_interface: `podman${number}`,
      created: timestamp(),
      subnets: [{ subnet: "127.0.0.0/8", gateway: "127.0.0.1" }],
      ipv6_enabled: wanted.ipv6_enabled ?? false,
      internal: wanted.internal ?? false,
      dns_enabled: wanted.dns_enabled ?? false,
      ...(wanted.labels && { labels: wanted.labels }),
      ipam_options: { driver: "host-local" },
    };
    this.#all.set(name, network);
    this.#emit("create", network);
    return network;
  }

  #emit(action: string, { id, name, driver }: Network): void {
    this.events.emit("network", action, id, { name: "", network: name, driver });
  }

  find(nameOrId: string): Network | undefined {
    return (
      this.#all.get(nameOrId) ??
      [...this.#all.values()].find(({ id }) => nameOrId.length > 2 && id.startsWith(nameOrId))
    );
  }

  /** @throws ApiError with `status`, which is 404 where the network itself is asked for */
  named(nameOrId: string, status = 404): Network {
    const missing = `unable to find network with name or ID ${nameOrId}`;
    return this.find(nameOrId) ?? fail(status, "network not found", missing);
  }

  list(query: URLSearchParams): Network[] {
    return [...this.#all.values()].filter(matcher(query, FILTERS));
  }

  /** Nothing may use it any more. */
  remove(network: Network): void {
    this.#all.delete(network.name);
    this.#emit("remove", network);
  }
}
