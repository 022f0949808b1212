// SPDX-License-Identifier: Apache-2.0

/**
 * A client of a driver that asks as a gateway asks: over HTTP/2 cleartext on a Unix socket, with `traceparent` in the
 * metadata, an `:authority` that says nothing, and id and name both set. It keeps what it called, as evidence.
 */
import type * as grpcJs from "@grpc/grpc-js";
import { type CallError, codeName, computeDriver, known, unary } from "../../proto/contract.ts";
import { grpc, status } from "../../proto/grpc.ts";
import type { ComputeDriverClient } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type {
  DriverSandbox,
  DriverSandbox__Output as Snapshot,
} from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { WatchSandboxesEvent__Output as Event } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import { redact, sandboxOf, type SandboxRequest } from "../runtime/faults/tap.ts";
import type { CallRecord } from "../report/model.ts";
import { now, record } from "../report/record.ts";
import { patient, Refused, show, Violation } from "./finding.ts";

export type { Event, Snapshot };

/** How long a driver may take to answer, in milliseconds, unless a rule says otherwise. The gateway itself waits for ever. */
const ANSWER_MS = 10_000;

/** One call, as evidence: a line of text. `at` is in milliseconds, on this process' clock. */
export interface Asked {
  at: number;
  /** In words, which are made only when somebody wants to read them. */
  text: () => string;
}

/** Who a call is about: a gateway always sends both. */
export interface Ref {
  id: string;
  name: string;
}

const KEPT_CALLS = 40;
/** How long a create may go on when its check has ended, in milliseconds. */
const CREATE_MS = 1_000;

/** What tonic names as `:authority`, the library that a gateway dials with. */
const AUTHORITY = "[::]:50051";

function dial(socket: string, authority: string): ComputeDriverClient {
  return new (computeDriver().ComputeDriver)(`unix:${socket}`, grpc().credentials.createInsecure(), {
    "grpc.default_authority": authority,
    "grpc.initial_reconnect_backoff_ms": 20,
    "grpc.max_reconnect_backoff_ms": 100,
    // A connection of its own, as every gateway has, and no second try, which no gateway has.
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,
    // Statistics that nobody reads are a tenth of what a call costs.
    "grpc.enable_channelz": 0,
  });
}

/** Whoever was answered so was not answered by the driver. */
const UNANSWERED = new Set([status.CANCELLED, status.DEADLINE_EXCEEDED, status.UNAVAILABLE]);

/** One connection to a driver. */
export class Driver {
  readonly asked: Asked[] = [];
  /** The ids of the sandboxes that it said it had deleted. */
  readonly deleted = new Set<string>();
  readonly #watches = new Set<Watch>();
  readonly #creating = new Set<Promise<unknown>>();
  readonly #metadata = metadata();
  #underWay = new AbortController();
  #unanswered = 0;

  /** @param client a connection that is there already; without one the socket is dialled, when there is something to ask */
  constructor(
    readonly socket: string,
    authority = AUTHORITY,
    readonly client = dial(socket, authority),
  ) {}

  /** Whether the connection is as good as new: it carried no watch, and every call that was made on it was answered. */
  get isAsNew(): boolean {
    return this.#unanswered === 0 && this.#watches.size === 0;
  }

  close(): void {
    for (const watch of this.#watches) watch.close();
    this.client.close();
  }

  /**
   * Ends the calls that are under way, and leaves the watches: a check that failed half-way is no longer waiting. A create
   * is waited for a moment, since a driver may carry out one that was cancelled, after all has been deleted.
   */
  async cancel(): Promise<void> {
    if (this.#creating.size > 0)
      await Promise.race([Promise.allSettled(this.#creating), Bun.sleep(CREATE_MS)]);
    this.#underWay.abort();
    this.#underWay = new AbortController();
  }

  getCapabilities = (deadlineMs?: number) =>
    this.#ask("GetCapabilities", this.client.GetCapabilities, {}, deadlineMs);
  getListenerRequirements = () =>
    this.#ask("GetGatewayListenerRequirements", this.client.GetGatewayListenerRequirements, {});
  validate = (sandbox: DriverSandbox | null, deadlineMs?: number) =>
    this.#ask("ValidateSandboxCreate", this.client.ValidateSandboxCreate, { sandbox }, deadlineMs);
  create(sandbox: DriverSandbox | null, deadlineMs?: number) {
    const call = this.#ask("CreateSandbox", this.client.CreateSandbox, { sandbox }, deadlineMs);
    this.#creating.add(call);
    const ended = () => void this.#creating.delete(call);
    call.then(ended, ended);
    return call;
  }
  stop = (who: Ref, deadlineMs?: number) =>
    this.#ask("StopSandbox", this.client.StopSandbox, request(who), deadlineMs);
  start = (who: Ref, deadlineMs?: number) =>
    this.#ask("StartSandbox", this.client.StartSandbox, request(who), deadlineMs);
  ensureWorkspace = (workspace: string) =>
    this.#ask("EnsureWorkspace", this.client.EnsureWorkspace, { workspace });
  deleteWorkspace = (workspace: string) =>
    this.#ask("DeleteWorkspace", this.client.DeleteWorkspace, { workspace });

  /** Deletes a sandbox. @returns what the driver says: whether there was one. */
  async delete(who: Ref, deadlineMs?: number): Promise<boolean> {
    const call = this.#ask("DeleteSandbox", this.client.DeleteSandbox, request(who), deadlineMs);
    const { deleted } = await call;
    if (deleted) this.deleted.add(who.id);
    return deleted;
  }

  /** The sandbox as the driver has it. @throws Refused with NOT_FOUND when it has none. */
  async get(who: Ref): Promise<Snapshot> {
    const { sandbox } = await this.#ask("GetSandbox", this.client.GetSandbox, request(who));
    if (!sandbox) throw new Violation("a sandbox, or NOT_FOUND", "OK without a sandbox");
    return sandbox;
  }

  async list(): Promise<Snapshot[]> {
    return (await this.#ask("ListSandboxes", this.client.ListSandboxes, {})).sandboxes;
  }

  /** A call whose request is these bytes, with more metadata: for what no generated code sends. */
  async send(
    name: "ValidateSandboxCreate" | "CreateSandbox" | "ListSandboxes",
    request: Buffer,
    more: Record<string, string | Buffer> = {},
  ): Promise<void> {
    const { path, responseDeserialize } = computeDriver().ComputeDriver.service[name];
    const asIs = (bytes: Buffer) => bytes;
    const method = (
      ...[message, metadata, options, done]: [Buffer, grpcJs.Metadata, grpcJs.CallOptions, Done]
    ) => {
      const all = metadata.clone();
      for (const [key, value] of Object.entries(more)) all.set(key, value);
      return this.client.makeUnaryRequest(path, asIs, responseDeserialize, message, all, options, done);
    };
    await this.#ask(name, method as unknown as UnaryMethod, request);
  }

  /** Opens a watch; it is over when it or the connection is closed. */
  watch(): Watch {
    const watch = new Watch(this.client.WatchSandboxes({}, this.#metadata), (text) => this.#note(text));
    this.#watches.add(watch);
    return watch;
  }

  async #ask<Request, Response>(
    name: string,
    method: (request: Request, callback: grpcJs.requestCallback<Response>) => grpcJs.ClientUnaryCall,
    message: Request,
    longestMs = ANSWER_MS,
  ): Promise<Response> {
    const deadlineMs = patient(longestMs);
    const { signal } = this.#underWay;
    const began = performance.now();
    const note = (code: string, details: string, responses: unknown[]) => {
      const [request, ms] = [redact(message), performance.now() - began];
      this.#note(() => {
        const outcome = responses.length > 0 ? responses.map(show).join(" ") : details;
        return `${name} ${show(request)} → ${code} ${outcome} (${Math.round(ms)} ms)`;
      });
      recordCall({ method: name, status: code, details, request, responses, ms });
    };
    this.#unanswered++;
    try {
      const response = await unary(this.client, method, message, {
        deadlineMs,
        metadata: this.#metadata,
        signal,
      });
      this.#unanswered--;
      note("OK", "", [redact(response)]);
      return response;
    } catch (error) {
      const { code, details } = error as CallError;
      if (typeof code !== "number") throw error;
      if (!UNANSWERED.has(code)) this.#unanswered--;
      note(codeName(code), details, []);
      const said = code === status.DEADLINE_EXCEEDED ? `no answer within ${deadlineMs} ms` : details;
      throw new Refused(name, codeName(code), said);
    }
  }

  #note(text: () => string): void {
    this.asked.push({ at: performance.now(), text });
    if (this.asked.length > KEPT_CALLS) this.asked.shift();
  }
}

type Done = grpcJs.requestCallback<object>;
type UnaryMethod = (request: Buffer, callback: Done) => grpcJs.ClientUnaryCall;

let calls = 0;

/** Records a call for the run's report; without a run, for nobody. */
function recordCall(
  call: Pick<CallRecord, "method" | "status" | "details" | "request" | "responses"> & { ms: number },
) {
  const ms = Math.round(call.ms * 100) / 100;
  const sandbox = sandboxOf(call.request as SandboxRequest);
  const request = shortened(call.request);
  const at = now() - call.ms;
  record({ kind: "calls", calls: [{ ...call, request, ms, stack: 0, seq: ++calls, at, sandbox }] });
}

/** So many characters of a text tell what it is. */
const TELLING = 1_000;

/** A copy of a message without long texts: what is sent to reach a limit, by the half megabyte, is no evidence. */
export function shortened(value: unknown): unknown {
  if (typeof value === "string")
    return value.length > TELLING ? `${value.slice(0, TELLING)}… (${value.length} characters)` : value;
  if (Buffer.isBuffer(value)) return `${value.length} bytes`;
  if (Array.isArray(value)) return value.map(shortened);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [name, shortened(field)]));
}

const request = ({ id, name }: Ref) => ({ sandbox_id: id, sandbox_name: name });

function metadata(): grpcJs.Metadata {
  const trace = crypto.randomUUID().replaceAll("-", "");
  const metadata = new (grpc().Metadata)();
  metadata.set("traceparent", `00-${trace}-${trace.slice(0, 16)}-01`);
  return metadata;
}

// Watches

/** An open watch, and all that came over it. */
export class Watch {
  readonly events: Event[] = [];
  /** How it ended, such as "OK" or "UNAVAILABLE: …"; unset while it is open. */
  ended: string | undefined;
  /** Resolves when the driver has begun to answer. */
  readonly began: Promise<void>;
  readonly #call: grpcJs.ClientReadableStream<Event>;
  #changed = Promise.withResolvers<void>();

  constructor(call: grpcJs.ClientReadableStream<Event>, note: (text: () => string) => void) {
    this.#call = call;
    this.began = new Promise((resolve) => call.once("metadata", () => resolve()));
    call.on("data", (event: Event) => {
      this.events.push(event);
      note(() => `WatchSandboxes ⇠ ${describeEvent(event)}`);
      this.#change();
    });
    call.on("error", () => {});
    call.on("status", (told: grpcJs.StatusObject) => {
      const { code, details } = known(told);
      this.ended = code === status.OK ? "OK" : `${codeName(code)}: ${details}`;
      note(() => `WatchSandboxes ended: ${this.ended}`);
      this.#change();
    });
  }

  #change(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /** The snapshots of one sandbox, oldest first. */
  of(id: string): Snapshot[] {
    return this.events.flatMap(({ sandbox }) => (sandbox?.sandbox?.id === id ? [sandbox.sandbox] : []));
  }

  /** Whether it was said that this sandbox is gone. */
  deleted(id: string): boolean {
    return this.events.some(({ deleted }) => deleted?.sandbox_id === id);
  }

  /**
   * Waits until `seen` is true of what came so far.
   * @throws Violation when it is not within `deadlineMs`, or when the watch ends before.
   */
  async until(what: string, seen: () => boolean, longestMs = ANSWER_MS): Promise<void> {
    const deadlineMs = patient(longestMs);
    const deadline = performance.now() + deadlineMs;
    while (!seen()) {
      const left = deadline - performance.now();
      const last = this.events.slice(-3).map(describeEvent).join("; ") || "no event";
      if (this.ended !== undefined)
        throw new Violation(what, `the watch ended with ${this.ended}, after ${last}`);
      if (left <= 0) throw new Violation(`${what} within ${deadlineMs} ms`, last);
      await Promise.race([this.#changed.promise, Bun.sleep(Math.min(left, 250))]);
    }
  }

  close(): void {
    this.#call.cancel();
  }
}

/** An event in a few words. */
export function describeEvent({ sandbox, deleted, platform_event }: Event): string {
  if (deleted) return `deleted ${deleted.sandbox_id}`;
  if (platform_event) return `platform event ${platform_event.event?.reason} of ${platform_event.sandbox_id}`;
  if (!sandbox?.sandbox) return "an event without content";
  return describeSnapshot(sandbox.sandbox);
}

/** A snapshot in a few words: "box (5f3a…) Ready=False/ContainerExited". */
export function describeSnapshot({ id, name, status }: Snapshot): string {
  const conditions =
    status?.conditions.map(({ type, status, reason }) => `${type}=${status}/${reason}`) ?? [];
  return [`${name} (${id})`, ...conditions, status ? "" : "no status", status?.deleting ? "deleting" : ""]
    .filter(Boolean)
    .join(" ");
}

// The gateway's rules

/** Reasons of Ready=False that a gateway takes for progress; every other one is a final Error (gateway 0.0.112). */
const TRANSIENT = new Set(
  "reconcilererror dependenciesnotready supervisornotconnected starting containerstarting containercreated healthcheckstarting inspectfailed".split(
    " ",
  ),
);
const STOPPED = new Set(["containerexited", "containerstopped"]);

/** What a gateway makes of a snapshot of a sandbox that it wants to run (gateway 0.0.112, derive_phase). */
export function phaseOf({
  status,
}: Snapshot): "UNKNOWN" | "DELETING" | "STOPPED" | "READY" | "ERROR" | "PROVISIONING" {
  if (!status) return "UNKNOWN";
  if (status.deleting) return "DELETING";
  const is = (text: string, word: string) => text.toLowerCase() === word;
  if (status.conditions.some(({ type, status }) => is(type, "suspended") && is(status, "true")))
    return "STOPPED";
  const ready = status.conditions.find(({ type }) => type === "Ready");
  if (ready && is(ready.status, "true")) return "READY";
  if (ready && is(ready.status, "false"))
    return TRANSIENT.has(ready.reason.toLowerCase()) ? "PROVISIONING" : "ERROR";
  return "PROVISIONING";
}

/** Whether a gateway that waits for a sandbox to stop takes this for its stop. */
export const isStopped = (snapshot: Snapshot): boolean =>
  phaseOf(snapshot) === "STOPPED" ||
  (snapshot.status?.conditions ?? []).some(
    ({ status, reason }) => status.toLowerCase() === "false" && STOPPED.has(reason.toLowerCase()),
  );

/** Whether a gateway would show a sandbox with this snapshot as coming up or up. */
export const isUp = (snapshot: Snapshot): boolean => ["PROVISIONING", "READY"].includes(phaseOf(snapshot));
