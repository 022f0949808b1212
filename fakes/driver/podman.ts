// SPDX-License-Identifier: Apache-2.0

/** Podman's REST API as the driver needs it: libpod v4.0.0, which Podman 4 and 5 both serve, over a Unix socket. */
import { alreadyExists, internal, notFound, type Status } from "../status.ts";
import { LABEL } from "./names.ts";

export const CALL_MS = 30_000;
const PULL_MS = 600_000;

export interface ListEntry {
  Id: string;
  Names: string[];
  State: string;
  Labels: Record<string, string> | null;
  Networks: string[] | null;
}

export interface Inspect {
  Id: string;
  Name: string;
  State: {
    Status: string;
    ExitCode: number;
    OOMKilled: boolean;
    StartedAt: string;
    FinishedAt: string;
    Health?: { Status: string } | null;
    /** Podman 4 under its older name. */
    Healthcheck?: { Status: string } | null;
  };
  Config: { Labels: Record<string, string> | null };
  NetworkSettings?: { Networks: Record<string, unknown> | null };
}

export interface Event {
  Action: string;
  Actor: { ID: string; Attributes: Record<string, string> };
}

// Errors

/** An answer of the engine other than success, or none at all (`status` 0). */
export class EngineError extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
  ) {
    const kinds: Record<number, string> = {
      0: "",
      404: "podman API not found (404): ",
      409: "podman API conflict (409): ",
    };
    super((kinds[status] ?? `podman API error (${status}): `) + message);
  }

  /** What a caller of the driver is told. */
  toStatus(): Status {
    if (this.status === 404) return notFound("sandbox not found");
    if (this.status === 409) return alreadyExists("sandbox already exists");
    return internal(this.message);
  }
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** The container is gone. While it is being removed, Podman says so with a 500. */
export const isGone = (error: unknown): boolean =>
  error instanceof EngineError && (error.status === 404 || error.reason === "no such container");

/** For what a call on a sandbox's container threw. */
export function goneIsNotFound(error: unknown): never {
  throw isGone(error) ? notFound("sandbox not found") : error;
}

export const isDuplicate = (error: unknown): boolean =>
  error instanceof EngineError &&
  (error.status === 409 || /already exists|already in use|name in use/.test(error.reason + error.message));

function engineError(status: number, text: string): EngineError {
  try {
    const { cause = "", message = "" } = JSON.parse(text) as { cause?: string; message?: string };
    return new EngineError(status, cause, message || cause || text);
  } catch {
    return new EngineError(status, "", text.trim());
  }
}

// Calls

interface Call {
  /** Sent as JSON, text as it is. */
  body?: object | string;
  /** Until what is wanted of the answer is read. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

export class Podman {
  constructor(readonly socket: string) {}

  /** One call on a connection of its own, so that an engine that was restarted is no surprise. */
  async #request<Read>(
    method: string,
    path: string,
    { body, timeoutMs = CALL_MS, signal }: Call,
    read: (response: Response) => Read | Promise<Read>,
  ): Promise<Read> {
    const deadline = new AbortController();
    const timer = setTimeout(() => deadline.abort(), timeoutMs);
    const isText = typeof body === "string";
    const options: BunFetchRequestInit & { timeout: false } = {
      method,
      unix: this.socket,
      keepalive: false,
      // Bun ends a silent response after five minutes; the deadlines are ours.
      timeout: false,
      signal: signal ? AbortSignal.any([deadline.signal, signal]) : deadline.signal,
      ...(body !== undefined && {
        body: isText ? body : JSON.stringify(body),
        headers: { "content-type": isText ? "application/octet-stream" : "application/json" },
      }),
    };
    try {
      return await read(await fetch(`http://d${path}`, options));
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      const what = `${method} ${path.split("?", 1)[0]}`;
      if (deadline.signal.aborted) {
        throw new EngineError(0, "timeout", `timeout after ${timeoutMs / 1000}s: ${what}`);
      }
      const why = messageOf(error);
      throw new EngineError(0, "connection", `connection error: ${this.socket}: ${why} (${what})`);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * The text of a successful answer ("" for 204 and 304).
   * @throws EngineError for any other answer, a deadline passed, or no connection.
   */
  async call(method: string, path: string, call: Call = {}): Promise<string> {
    const { status, text } = await this.#request(method, `/v4.0.0/libpod${path}`, call, async (response) => ({
      status: response.status,
      text: await response.text(),
    }));
    if (status < 300 || status === 304) return text;
    throw engineError(status, text);
  }

  /** The same, of an answer in JSON. */
  async json<Type>(method: string, path: string, call: Call = {}): Promise<Type> {
    const text = await this.call(method, path, call);
    try {
      return JSON.parse(text) as Type;
    } catch (error) {
      throw new EngineError(0, "json", `JSON error: ${messageOf(error)}: ${text.slice(0, 200)}`);
    }
  }

  get<Type>(path: string): Promise<Type> {
    return this.json("GET", path);
  }

  /** A delete that succeeds when there is nothing to delete. */
  async discard(path: string): Promise<void> {
    await this.call("DELETE", path).catch((error: unknown) => {
      if (!isGone(error)) throw error;
    });
  }

  async ping(): Promise<void> {
    const response = await this.#request("GET", "/_ping", {}, (response) => response);
    if (!response.ok) throw new EngineError(response.status, "", "ping failed");
    if (!response.headers.has("libpod-api-version")) {
      const message = `connection error: ${this.socket}: the answer to /_ping is not Podman's`;
      throw new EngineError(0, "not podman", message);
    }
  }

  /** All containers of OpenShell, or of one sandbox. */
  list(sandboxId?: string): Promise<ListEntry[]> {
    const label = [`${LABEL.managed}=true`, ...(sandboxId ? [`${LABEL.id}=${sandboxId}`] : [])];
    return this.get(`/containers/json?all=true&filters=${filters({ label })}`);
  }

  /** Those of these secrets that there are. */
  async secrets(names: string[]): Promise<string[]> {
    interface Secret {
      Spec: { Name: string };
    }
    const all = await this.get<Secret[] | null>(`/secrets/json?filters=${filters({ name: names })}`);
    return (all ?? []).map(({ Spec }) => Spec.Name).filter((name) => names.includes(name));
  }

  inspect(id: string): Promise<Inspect> {
    return this.get(`/containers/${id}/json`);
  }

  /**
   * Pulls as the policy says. Resolves with the image's id. The engine reports a failure in the last line of a successful
   * answer.
   */
  async pull(reference: string, policy: string, signal: AbortSignal): Promise<string> {
    const query = `reference=${encodeURIComponent(reference)}&policy=${policy}`;
    const text = await this.call("POST", `/images/pull?${query}`, { timeoutMs: PULL_MS, signal });
    const last = text.trimEnd().split("\n").at(-1) ?? "";
    const { error, id = "" } = (last.startsWith("{") ? JSON.parse(last) : {}) as {
      error?: string;
      id?: string;
    };
    if (error) throw new EngineError(500, error, `image pull failed: ${error}`);
    return id;
  }

  /**
   * The events of managed containers. Resolves when the engine has accepted the subscription: nothing that happens
   * afterwards is missed. The stream ends when the engine goes away.
   */
  async events(signal: AbortSignal): Promise<AsyncGenerator<Event>> {
    const query = `stream=true&filters=${filters({ type: ["container"], label: [`${LABEL.managed}=true`] })}`;
    const path = `/v4.0.0/libpod/events?${query}`;
    const response = await this.#request("GET", path, { signal }, (response) => response);
    if (!response.ok || !response.body) throw engineError(response.status, await response.text());
    return eventsIn(response.body);
  }
}

const filters = (of: Record<string, string[]>): string => encodeURIComponent(JSON.stringify(of));

async function* eventsIn(stream: ReadableStream<Uint8Array>): AsyncGenerator<Event> {
  let rest = Buffer.alloc(0);
  for await (const chunk of stream) {
    rest = Buffer.concat([rest, chunk]);
    const { values, read, error } = Bun.JSONL.parseChunk(rest);
    if (error) throw error;
    yield* values as Event[];
    rest = rest.subarray(read);
  }
}
