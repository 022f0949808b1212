// SPDX-License-Identifier: Apache-2.0

/** The engine: a client of Podman's REST API with what the harness needs of it, and what a run leaves there. */
import { eventually } from "../base/waiting.ts";
import { HarnessError } from "../base/errors.ts";
import { shellQuoted } from "../base/text.ts";
import { whatServes } from "./engine-identity.ts";
import { whyUnreachable } from "../base/socket.ts";
import { urlPath } from "../base/machine.ts";
import { RUN_LABEL } from "./marks.ts";
import type { Run } from "./run.ts";
import { holdsId } from "../base/sandbox-id.ts";

interface EngineInfo {
  version: string;
  rootless: boolean;
  cgroups: string;
  /** What it keeps events in, such as "journald" or "file". */
  events: string;
}

/** What is read of Podman's `GET info`. */
interface Info {
  host: { cgroupVersion: string; eventLogger: string; security: { rootless: boolean } };
  version: { Version: string };
}

/** Whether an answer, which any server may have given, is one of Podman's. */
const isInfo = (told: unknown): told is Info => {
  const { host, version } = (told ?? {}) as Partial<Info>;
  return typeof version?.Version === "string" && typeof host?.security?.rootless === "boolean";
};

/** Podman looks through its whole storage for it. In milliseconds. */
const INFO_MS = 20_000;

/** A Podman API service on a Unix socket, asked over `/v4.0.0/libpod`, which Podman 4 and 5 both serve. */
export class Engine {
  constructor(readonly socket: string) {}

  /**
   * One REST call; `deadlineMs` bounds it.
   * @throws HarnessError with Podman's own message for any status that is neither 2xx, 304 nor in `accept`.
   */
  async call<T>(method: string, path: string, options: EngineCall = {}): Promise<T> {
    return parsed<T>(await this.#text(method, path, options)) as T;
  }

  async #text(
    method: string,
    path: string,
    { body, query = {}, accept = [], deadlineMs = 30_000 }: EngineCall,
  ): Promise<string> {
    const url = new URL(`http://podman/v4.0.0/libpod/${path}`);
    for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
    const raw = body instanceof Blob;
    let response: Response;
    let text: string;
    try {
      response = await fetch(url, {
        method,
        unix: this.socket,
        body: raw ? body : body === undefined ? undefined : JSON.stringify(body),
        headers: { "content-type": raw ? "application/x-tar" : "application/json" },
        signal: AbortSignal.timeout(deadlineMs),
      });
      text = await response.text();
    } catch (error) {
      const { name, message } = error as Error;
      const unreachable = await whyUnreachable(this.socket);
      const reason = unreachable
        ? `${unreachable}. Start it: podman system service --time=0 ${shellQuoted(`unix://${urlPath(this.socket)}`)}`
        : name === "TimeoutError"
          ? `no answer within ${deadlineMs} ms`
          : message;
      throw new HarnessError(`engine on ${this.socket}: ${method} ${path}: ${reason}`);
    }
    if (!response.ok && response.status !== 304 && !accept.includes(response.status)) {
      const message = parsed<{ message?: string }>(text)?.message ?? text;
      throw new HarnessError(
        `engine on ${this.socket}: ${method} ${path}: ${response.status} ${message.trim()}`,
      );
    }
    return text;
  }

  /** Who it is. @throws HarnessError that says what serves the socket, when it is not Podman 4.0 or later. */
  async info(deadlineMs = INFO_MS): Promise<EngineInfo> {
    let problem: Error | undefined;
    const told = await this.call<Info | undefined>("GET", "info", { deadlineMs }).catch(
      (error: Error) => void (problem = error),
    );
    if (isInfo(told)) {
      const { host, version } = told;
      return {
        version: version.Version,
        rootless: host.security.rootless,
        cgroups: host.cgroupVersion,
        events: host.eventLogger,
      };
    }
    if (problem && (await whyUnreachable(this.socket))) throw problem;
    const found = await whatServes(this.socket, deadlineMs);
    // What Podman says of its own trouble says more.
    if (problem && /^Podman ([4-9]|\d\d)/.test(found)) throw problem;
    throw new HarnessError(
      `engine on ${this.socket}: found ${found}, and the API service of Podman 4.0 or later was expected`,
    );
  }

  /** Every container, running or not, of those networks. */
  async containers(networks: string[]): Promise<Container[]> {
    const all = await this.call<Container[] | null>("GET", "containers/json", { query: { all: "true" } });
    return (all ?? []).filter((container) => container.Networks?.some((name) => networks.includes(name)));
  }

  /** The last lines that a container printed, as it printed them. */
  async logs(id: string, lines: number): Promise<string[]> {
    const url = `http://podman/v4.0.0/libpod/containers/${id}/logs?stdout=true&stderr=true&tail=${lines}`;
    const response = await fetch(url, { unix: this.socket, signal: AbortSignal.timeout(5_000) });
    return unframe(await beginningOf(response));
  }

  /** The names of all networks, or of those that carry a run's label. */
  async networks(run?: Run): Promise<string[]> {
    const query: Record<string, string> = run
      ? { filters: JSON.stringify({ label: [`${RUN_LABEL}=${run.id}`] }) }
      : {};
    const networks = await this.call<Network[] | null>("GET", "networks/json", { query });
    // What is removed must not depend on whether an engine knows the filter.
    const wanted = (networks ?? []).filter(({ labels }) => !run || labels?.[RUN_LABEL] === run.id);
    return wanted.map(({ name }) => name);
  }

  async volumes(): Promise<string[]> {
    return ((await this.call<{ Name: string }[] | null>("GET", "volumes/json")) ?? []).map(
      ({ Name }) => Name,
    );
  }

  async secrets(): Promise<string[]> {
    const secrets = await this.call<{ Spec: { Name: string } }[] | null>("GET", "secrets/json");
    return (secrets ?? []).map(({ Spec }) => Spec.Name);
  }

  async createNetwork(name: string, run: Run): Promise<void> {
    const labels = { [RUN_LABEL]: run.id };
    await this.call("POST", "networks/create", {
      body: { name, driver: "bridge", dns_enabled: true, labels },
    });
  }

  /**
   * A container that does nothing but be on the network: a rootful Podman makes a network's bridge only when the
   * first container joins, and the gateway must bind the bridge's address before there is a sandbox.
   */
  async holdBridge(network: string, image: string, run: Run): Promise<void> {
    const spec = {
      name: `${network}-bridge`,
      image,
      entrypoint: ["sleep"],
      command: ["2147483"],
      labels: { [RUN_LABEL]: run.id },
      netns: { nsmode: "bridge" },
      networks: { [network]: {} },
      stop_timeout: 0,
    };
    await this.call("POST", "containers/create", { body: spec });
    await this.call("POST", `containers/${spec.name}/start`);
  }

  /**
   * Makes sure that an image is there, by pulling it if it is missing.
   * @throws HarnessError with the engine's message: its answer is a line of JSON a step, and a failure is one of them.
   */
  async needImage(image: string): Promise<void> {
    const query = { reference: image, policy: "missing" };
    const steps = await this.#text("POST", "images/pull", { query, deadlineMs: 600_000 });
    const failure = steps
      .split("\n")
      .map((step) => parsed<{ error?: string }>(step)?.error)
      .find(Boolean);
    if (failure) throw new HarnessError(failure);
  }

  async hasImage(image: string): Promise<boolean> {
    const answer = await this.call<{ cause?: string } | undefined>("GET", `images/${image}/exists`, {
      accept: [404],
    });
    return answer === undefined;
  }

  /** An image that is there, with the digest that tells it from others of its name. */
  async identify(reference: string): Promise<{ reference: string; digest: string }> {
    const { Digest: digest } = await this.call<{ Digest: string }>("GET", `images/${reference}/json`);
    return { reference, digest };
  }

  /** Makes an image of a tar, as `podman import` does. */
  async importImage(reference: string, tar: Blob): Promise<void> {
    await this.call("POST", "images/import", { query: { reference }, body: tar, deadlineMs: 120_000 });
  }
}

/** What is read of a container's last lines, of which one may have no end, in bytes. */
const LONGEST_LOG = 2 ** 23;

/** The body of an answer, or the beginning of a long one. */
async function beginningOf({ body }: Response): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of body ?? []) {
    chunks.push(chunk);
    if ((length += chunk.length) > LONGEST_LOG) break;
  }
  return Buffer.concat(chunks);
}

/** The lines of Podman's log stream: frames of stream number, three zero bytes, big-endian length, and text. */
function unframe(view: Buffer): string[] {
  let text = "";
  for (let at = 0; at + 8 <= view.length;) {
    const length = view.readUInt32BE(at + 4);
    text += view.toString("utf8", at + 8, at + 8 + length);
    at += 8 + length;
  }
  return text.split("\n").filter(Boolean);
}

interface EngineCall {
  body?: object | Blob;
  query?: Record<string, string>;
  accept?: number[];
  deadlineMs?: number;
}

interface Network {
  name: string;
  labels?: Record<string, string> | null;
}

interface Container {
  Id: string;
  Names: string[];
  State: string;
  ExitCode: number;
  Labels: Record<string, string> | null;
  Networks: string[] | null;
}

function parsed<T>(text: string): T | undefined {
  try {
    return text ? (JSON.parse(text) as T) : undefined;
  } catch {
    return undefined;
  }
}

/** Something on an engine that a run made, or its sandboxes did. */
export interface Belonging {
  kind: "container" | "volume" | "secret" | "network";
  name: string;
  detail?: string;
  /** By which it is removed, unless that is its name. */
  id?: string;
}

export const describeBelonging = ({ kind, name, detail }: Belonging): string =>
  `${kind} ${name}${detail ? ` (${detail})` : ""}`;

/**
 * What is on the engine of those networks and those sandboxes: the containers on the networks, the volumes and secrets
 * whose name holds a sandbox's id, and the networks. In the order in which they can be removed.
 *
 * An id counts only if the run itself heard of it when the sandbox was created, never because a container's label names
 * it: drivers write labels.
 */
export async function belongings(
  engine: Engine,
  networks: string[],
  sandboxIds: string[],
): Promise<Belonging[]> {
  const containers = networks.length > 0 ? await engine.containers(networks) : [];
  const ids = [...new Set(sandboxIds)];
  const owned = (name: string) => name.startsWith("openshell-") && ids.some((id) => holdsId(name, id));
  const [volumes, secrets, existing] = await Promise.all([
    ids.length > 0 ? engine.volumes() : [],
    ids.length > 0 ? engine.secrets() : [],
    networks.length > 0 ? engine.networks() : [],
  ]);
  return [
    ...containers.map(({ Id, Names, State }) => ({
      kind: "container" as const,
      name: Names[0] ?? Id,
      detail: State,
      id: Id,
    })),
    ...volumes.filter(owned).map((name) => ({ kind: "volume" as const, name })),
    ...secrets.filter(owned).map((name) => ({ kind: "secret" as const, name })),
    ...existing.filter((name) => networks.includes(name)).map((name) => ({ kind: "network" as const, name })),
  ];
}

/** How long an engine may refuse to remove a thing, in milliseconds: it does while it is busy with it. */
const REFUSALS_MS = 5_000;

/**
 * Removes them. What is gone already is fine.
 * @throws HarnessError that names each thing that the engine would not remove, and why; the others are gone all the same.
 */
export async function removeBelongings(
  engine: Engine,
  things: Belonging[],
  deadlineMs = REFUSALS_MS,
): Promise<void> {
  const refused: string[] = [];
  const removeAll = (kind: Belonging["kind"], query: Record<string, string> = {}) =>
    things
      .filter((thing) => thing.kind === kind)
      .map(async (thing) => {
        const path = `${kind}s/${encodeURIComponent(thing.id ?? thing.name)}`;
        const remove = () => engine.call("DELETE", path, { query, accept: [404] });
        const waiting = { what: `remove ${describeBelonging(thing)}`, deadlineMs };
        await eventually(remove, waiting).catch((error: Error) => refused.push(error.message));
      });
  await Promise.all(removeAll("container", { force: "true", volumes: "true", timeout: "0" }));
  await Promise.all([
    ...removeAll("volume", { force: "true" }),
    ...removeAll("secret"),
    ...removeAll("network", { force: "true" }),
  ]);
  if (refused.length > 0) throw new HarnessError(refused.join("\n"));
}
