// SPDX-License-Identifier: Apache-2.0

/**
 * The tap: a proxy on the socket that the gateway's config names, in front of the driver's own socket.
 *
 * It passes each call through as bytes (relay.ts), without reading them, and keeps what crossed: method, request,
 * responses, status and times. Rules make it delay, fail, rewrite or hang a call. Messages are decoded only when somebody looks
 * at them, with secret fields redacted, so an idle tap costs a copy of a reference.
 */
import type * as grpcJs from "@grpc/grpc-js";
import type { MethodDefinition } from "@grpc/proto-loader";
import { chmodSync, rmSync } from "node:fs";
import type { IncomingHttpHeaders } from "node:http2";
import { codeName, computeDriver } from "../../../proto/contract.ts";
import { grpc, status } from "../../../proto/grpc.ts";
import type { ComputeDriverDefinition } from "../../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { CreateSandboxRequest__Output } from "../../../proto/v0.0/types/openshell/compute/v1/CreateSandboxRequest.ts";
import type { Rule } from "../../base/faults.ts";
import { eventually } from "../../base/waiting.ts";
import type { CallRecord, EventRecord } from "../../report/model.ts";
import { CallServer, ended, type Ended, type MadeCall, type ServedCall, Upstream } from "./relay.ts";

/** One call as it crossed the socket. Times are in milliseconds, `at` since the tap was opened. */
export interface Call {
  seq: number;
  method: string;
  at: number;
  /** Unset while the call is open. */
  ms?: number;
  /** The status' name, such as "OK" or "NOT_FOUND"; unset while the call is open. */
  status?: string;
  details?: string;
  request: unknown;
  responses: unknown[];
}

// Interceptors: what a rule cannot say, for whoever has the tap in its own process

/** The contract's methods by name, without the index signature that grpc-js wants. */
type Methods = {
  [M in keyof ComputeDriverDefinition as string extends M ? never : M]: ComputeDriverDefinition[M];
};

type Unary = Exclude<keyof Methods, "WatchSandboxes">;

type Sent<M extends keyof Methods> =
  Methods[M] extends MethodDefinition<infer Request, infer _, infer __, infer ___> ? Request : never;

type Answer<M extends keyof Methods> =
  Methods[M] extends MethodDefinition<infer _, infer Response, infer __, infer ___> ? Response : never;

type Seen<M extends keyof Methods> =
  Methods[M] extends MethodDefinition<infer _, infer __, infer Request, infer ___> ? Request : never;

type Heard<M extends keyof Methods> =
  Methods[M] extends MethodDefinition<infer _, infer __, infer ___, infer Response> ? Response : never;

/** What the decoded request does not show of a call. */
export interface RawCall {
  request: Buffer;
  metadata: grpcJs.Metadata;
  /** The `:authority` that the caller named. */
  authority: string;
  /** Makes one more call of the driver. */
  ask<M extends Unary>(method: M, request: Sent<M>): Promise<Heard<M>>;
}

/** A watch that an interceptor holds. */
export interface TappedWatch {
  /** Which watch of this tap it is; the first is 1. */
  number: number;
  send(event: Answer<"WatchSandboxes">): void;
  /** Ends it, with OK unless told otherwise. */
  end(code?: status, details?: string): void;
  /** Keeps back the response's headers until something is sent. */
  holdHeaders(): void;
  /** Stays open when the driver ends it. */
  outlive(): void;
  /** How many events were sent that its caller has not begun to read. */
  unread(): number;
}

/**
 * Answers calls in the driver's place. A unary method's may `pass` the call on, as it is or changed, any number of
 * times, and throws `{ code, details }` to refuse it. A watch's is told of the watch, and returns what is to be done
 * with each of the driver's events.
 */
export type Interceptors = {
  [M in Unary]?: (
    request: Seen<M>,
    pass: (request?: Seen<M>) => Promise<Heard<M>>,
    raw: RawCall,
  ) => Promise<Answer<M>>;
} & {
  WatchSandboxes?: (watch: TappedWatch, raw: RawCall) => (event: Heard<"WatchSandboxes">) => void;
};

/** An interceptor of any unary method, for code that does not know which. */
export type UnaryInterceptor = (
  request: object,
  pass: (request?: object) => Promise<object>,
  raw: RawCall,
) => Promise<object>;

/** Fields marked `secret` in the contract (proto/v0.0, option 50001), redacted wherever they show up. */
const SECRET_FIELDS: ReadonlySet<string> = new Set(["sandbox_token", "token"]);

/** How long a reordered event is held back for the next one, in milliseconds. */
const REORDER_MS = 200;

const KEPT_CALLS = 5_000;

/** Of a stream: its last events for reports, and those that `calls` shows. */
const KEPT_EVENTS = 10_000;

const SHOWN_EVENTS = 1_000;
/** What all that is kept may take together, in bytes. */
const KEPT_BYTES = 32 * 2 ** 20;
/** What a message takes beside its own bytes. */
const OVERHEAD_BYTES = 256;
const FORGOTTEN = -1;
/** In a report are the last events of a stream, and of each sandbox no more than its last few. */
const REPORTED_EVENTS = 3_000;

const REPORTED_OF_A_SANDBOX = 20;

/** A method of the contract, of messages that are known when there are any. */
type Method = grpcJs.MethodDefinition<object, object>;

/** The methods by their path. */
const methods = (): ReadonlyMap<string, [name: string, Method]> =>
  new Map(
    Object.entries(computeDriver().ComputeDriver.service).map(([name, definition]) => {
      const method = definition as Method;
      return [method.path, [name, method]];
    }),
  );

interface Crossing {
  seq: number;
  method: Method;
  name: string;
  at: number;
  ms?: number;
  status?: status;
  details?: string;
  request: Buffer;
  responses: { at: number; bytes: Buffer }[];
  headers: IncomingHttpHeaders;
  /** What is kept of it, in bytes, or FORGOTTEN. */
  size: number;
}

/** A call that crossed, for whoever wants to go through it again. */
export interface Crossed {
  seq: number;
  name: string;
  bytes: Buffer;
  request: object;
  responses: { at: number; message: object }[];
  at: number;
  /** Unset while the call is open. */
  ms: number | undefined;
  code: status | undefined;
  details: string;
  metadata: grpcJs.Metadata;
  authority: string;
}

/** An open tap. `close` ends every call that is under way and removes the socket. */
export class Tap {
  rules: Rule[] = [];
  /** Told of each call that ended, in one line. */
  onEnd: ((line: string) => void) | undefined;
  /** What answers in the driver's place, by method. */
  intercept: Interceptors = {};
  #watches = 0;
  readonly #records: Crossing[] = [];
  readonly #opened = performance.now();
  readonly #driverReady: Promise<boolean>;
  #driverIsReady = false;
  readonly #closed = Promise.withResolvers<void>();
  #isClosed = false;
  readonly #methods = methods();
  readonly #upstream: Upstream;
  #server: CallServer | undefined;
  #seq = 0;
  /** What is kept of all calls, in bytes. */
  #size = 0;

  private constructor(
    readonly socket: string,
    upstream: string,
    readonly onCreate: (sandboxId: string, token: string) => void,
    driverReady: Promise<unknown>,
  ) {
    this.#upstream = new Upstream(upstream);
    // A driver that never became ready is a driver that is not there: calls go on and find that out.
    const ready = () => {
      this.#driverIsReady = true;
      return false;
    };
    this.#driverReady = driverReady.then(ready, ready);
  }

  /**
   * Listens on `socket` (mode 0600) and dials the driver's `upstream` socket.
   * @param onCreate told each sandbox's id and token before its CreateSandbox is passed on, so that nothing made can be
   * forgotten, and no token be printed.
   * @param driverReady calls are held until then, so that gateway and driver can be started side by side.
   */
  static async open(
    socket: string,
    upstream: string,
    onCreate: (sandboxId: string, token: string) => void,
    driverReady: Promise<unknown>,
  ): Promise<Tap> {
    const tap = new Tap(socket, upstream, onCreate, driverReady);
    await tap.#listen();
    return tap;
  }

  async #listen(): Promise<void> {
    this.#server = await CallServer.listen(this.socket, (call, path) => this.#serve(call, path));
    chmodSync(this.socket, 0o600);
  }

  /** Breaks every connection, and takes new ones. */
  async #drop(): Promise<void> {
    this.#server?.close();
    rmSync(this.socket, { force: true });
    await this.#listen();
  }

  /**
   * Waits until the tap has found a driver that came back, or is closed itself; calls before that would fail as if the
   * driver were still gone.
   */
  reconnected(deadlineMs: number): Promise<void> {
    const failed = () => (this.#isClosed ? "the tap is closed" : undefined);
    const reached = eventually(() => this.#upstream.reached(), {
      what: "reach the driver",
      deadlineMs,
      failed,
    });
    return Promise.race([reached, this.#closed.promise]);
  }

  close(): void {
    this.#isClosed = true;
    this.#closed.resolve();
    this.#server?.close();
    this.#upstream.close();
    // The server removes it itself on some platforms.
    rmSync(this.socket, { force: true });
  }

  /** What crossed since call number `since`, oldest first, decoded and redacted. */
  calls(since = 0): Call[] {
    return this.#records.filter((record) => record.seq > since).map(decode);
  }

  /** The same as a report has them; times since 1970. */
  records(stack: number): CallRecord[] {
    const opened = performance.timeOrigin + this.#opened;
    return this.#records.map((record) => {
      const { seq, method, at, ms, status = "", details = "", request, responses } = decode(record);
      const sandbox = sandboxOf(request as SandboxRequest);
      const isStream = record.method.responseStream;
      return {
        stack,
        seq,
        method,
        at: opened + at,
        ms: ms && Math.round(ms * 100) / 100,
        status,
        details,
        sandbox,
        request,
        responses: isStream ? [] : responses,
        ...(isStream && { events: reported(record, opened) }),
      };
    });
  }

  /** What crossed, undisguised: for this process alone. */
  crossed(): Crossed[] {
    return this.#records.map(
      ({ seq, name, method, at, ms, request, responses, status, details = "", headers }) => ({
        seq,
        name,
        at,
        ms,
        bytes: request,
        request: method.requestDeserialize(request),
        responses: responses.map(({ at, bytes }) => ({ at, message: method.responseDeserialize(bytes) })),
        code: status,
        details,
        metadata: metadataOf(headers),
        authority: headers[":authority"] ?? "",
      }),
    );
  }

  /** The number of the last call, to ask later for what came after it. */
  get seq(): number {
    return this.#seq;
  }

  // Serving

  #serve(call: ServedCall, path: string): void {
    const [name, method] = this.#methods.get(path) ?? [];
    if (!name || !method) this.#passOn(call);
    else if (method.responseStream) void this.#stream(name, method, call);
    else void this.#unary(name, method, call);
  }

  /** A call that this contract does not have: a newer gateway and its driver may know it. */
  #passOn(call: ServedCall): void {
    const upstream = this.#upstream.call(call.headers, call.request, {
      headers: (headers) => call.respond(headers),
      message: (bytes) => call.write(bytes),
      end: (outcome) => call.end(outcome),
    });
    call.onCancelled(() => upstream.cancel());
  }

  async #unary(name: string, method: Method, call: ServedCall): Promise<void> {
    const record = this.#record(name, method, call);
    const rule = this.#rule(name);
    if (this.#mustHold(rule) && (await this.#held(record, rule, call))) return;
    if (rule?.fail) return call.end(this.#end(record, ended(rule.fail.code, rule.fail.message)));
    if (rule?.duplicate) this.#upstream.call(call.headers, call.request, { message() {}, end() {} });

    const interceptor = this.intercept[name as keyof Interceptors] as UnaryInterceptor | undefined;
    if (interceptor) return this.#intercepted(interceptor, record, method, call);

    let headers: IncomingHttpHeaders | undefined;
    const upstream = this.#upstream.call(call.headers, call.request, {
      headers: (received) => (headers = received),
      message: (bytes) => {
        let answer: Buffer;
        try {
          answer = overlay(method, bytes, rule);
        } catch (error) {
          return call.end(this.#end(record, unreadable(error)));
        }
        this.#answered(record, answer);
        call.respond(headers);
        call.write(answer);
      },
      end: (outcome) => record.ms === undefined && call.end(this.#end(record, outcome)),
    });
    call.onCancelled(() => upstream.cancel());
  }

  async #intercepted(
    interceptor: UnaryInterceptor,
    record: Crossing,
    method: Method,
    call: ServedCall,
  ): Promise<void> {
    try {
      const request = method.requestDeserialize(call.request);
      const pass = (message = request) => this.#ask(method, message, call);
      const answer = method.responseSerialize(await interceptor(request, pass, this.#rawCall(call)));
      this.#answered(record, answer);
      const outcome = this.#end(record, ended(status.OK));
      call.write(answer);
      call.end(outcome);
    } catch (error) {
      const { code = status.UNKNOWN, details = String(error) } = error as Partial<grpcJs.ServiceError>;
      call.end(this.#end(record, ended(code, details)));
    }
  }

  /** Makes a call of the driver within another one. @throws `{ code, details }` when it is refused */
  #ask(method: Method, request: object, within: ServedCall): Promise<object> {
    const headers = { ...within.headers, ":path": method.path };
    return new Promise((resolve, reject) => {
      let answer: Buffer | undefined;
      this.#upstream.call(headers, method.requestSerialize(request), {
        message: (bytes) => (answer = bytes),
        end: ({ code, details }) => {
          if (code !== status.OK || !answer)
            return reject(Object.assign(new Error(details), { code, details }));
          try {
            resolve(method.responseDeserialize(answer));
          } catch (error) {
            reject(Object.assign(error as Error, unreadable(error)));
          }
        },
      });
    });
  }

  #rawCall(call: ServedCall): RawCall {
    const { service } = computeDriver().ComputeDriver;
    const ask = (name: Unary, request: object) =>
      this.#ask(service[name] as unknown as Method, request, call);
    return {
      request: call.request,
      metadata: metadataOf(call.headers),
      authority: call.authority,
      ask: ask as RawCall["ask"],
    };
  }

  async #stream(name: string, method: Method, call: ServedCall): Promise<void> {
    const record = this.#record(name, method, call);
    const rule = this.#rule(name);
    if (this.#mustHold(rule) && (await this.#held(record, rule, call))) return;
    if (rule?.fail) return call.end(this.#end(record, ended(rule.fail.code, rule.fail.message)));

    let upstream: MadeCall | undefined;
    let headers: IncomingHttpHeaders | undefined;
    let headersHeld = false;
    let outlives = false;
    let over = false;
    const send = (item: Buffer) => {
      if (over) return;
      this.#answered(record, item);
      call.respond(headers);
      if (!call.write(item)) upstream?.pause();
    };
    const finish = (outcome: Ended) => {
      if (over) return;
      over = true;
      call.end(this.#end(record, outcome));
    };
    const watch: TappedWatch = {
      number: ++this.#watches,
      send: (event) => send(method.responseSerialize(event)),
      end: (code = status.OK, details = "") => {
        finish(ended(code, details));
        upstream?.cancel();
      },
      holdHeaders: () => (headersHeld = true),
      outlive: () => (outlives = true),
      unread: () => call.unread,
    };
    const onEvent = this.intercept.WatchSandboxes?.(watch, this.#rawCall(call));
    const pass = byRule(rule, (item) => send(overlay(method, item, rule)), watch);
    if (over) return;
    upstream = this.#upstream.call(call.headers, call.request, {
      headers: (received) => {
        headers = received;
        if (!headersHeld) call.respond(headers);
      },
      message: (bytes) => {
        try {
          if (onEvent) onEvent(method.responseDeserialize(bytes) as Heard<"WatchSandboxes">);
          else pass(bytes);
        } catch (error) {
          finish(unreadable(error));
          upstream?.cancel();
        }
      },
      end: (outcome) => outlives || finish(outcome),
    });
    call.onCancelled(() => {
      upstream.cancel();
      finish(ended(status.CANCELLED));
    });
    call.onDrain(() => upstream.resume());
  }

  /** Most calls pass at once: waiting for nothing would cost each of them a turn of the event loop. */
  #mustHold(rule: Rule | undefined): boolean {
    return !this.#driverIsReady || rule?.hang === true || rule?.drop === true || Boolean(rule?.delayMs);
  }

  /** Delays or hangs a call as its rule says; true when there is nothing left to do for it. */
  async #held(record: Crossing, rule: Rule | undefined, call: ServedCall): Promise<boolean> {
    const gone = new Promise<true>((resolve) =>
      call.onCancelled(() => {
        if (record.ms === undefined) this.#end(record, ended(status.CANCELLED));
        resolve(true);
      }),
    );
    if (await Promise.race([gone, this.#driverReady])) return true;
    if (rule?.drop) void this.#drop();
    if (rule?.hang || rule?.drop) return gone;
    if (rule?.delayMs) return Promise.race([gone, Bun.sleep(rule.delayMs).then(() => false)]);
    return false;
  }

  #rule(method: string): Rule | undefined {
    const rule = this.rules.find((candidate) => candidate.method === method && candidate.times !== 0);
    if (rule?.from !== undefined && --rule.from > 0) return undefined;
    if (rule?.times !== undefined) rule.times--;
    return rule;
  }

  // Recording

  #record(name: string, method: Method, { request, headers }: ServedCall): Crossing {
    const at = performance.now() - this.#opened;
    const size = request.length + OVERHEAD_BYTES;
    const record: Crossing = { seq: ++this.#seq, name, method, at, request, responses: [], headers, size };
    if (name === "CreateSandbox") this.#noteSandbox(request, method);
    this.#records.push(record);
    this.#size += size;
    // A watch is older than most calls, and still goes on.
    if (this.#records.length > KEPT_CALLS)
      this.#forget(this.#records.find(({ ms }) => ms !== undefined) ?? this.#records[0]!);
    this.#makeRoom();
    return record;
  }

  #noteSandbox(request: Buffer, method: Method): void {
    let created: CreateSandboxRequest__Output;
    try {
      created = method.requestDeserialize(request) as CreateSandboxRequest__Output;
    } catch {
      // A check sends such things on purpose, and no driver makes a sandbox of them.
      return;
    }
    this.onCreate(created.sandbox?.id ?? "", created.sandbox?.spec?.sandbox_token ?? "");
  }

  #answered(record: Crossing, bytes: Buffer): void {
    if (record.size === FORGOTTEN) return;
    record.responses.push({ at: performance.now() - this.#opened, bytes });
    record.size += bytes.length + OVERHEAD_BYTES;
    this.#size += bytes.length + OVERHEAD_BYTES;
    if (record.responses.length > KEPT_EVENTS) this.#forgetEvent(record);
    this.#makeRoom();
  }

  /** Forgets the most of whoever said the most, its oldest first: what floods costs nothing else its place. */
  #makeRoom(): void {
    while (this.#size > KEPT_BYTES) {
      const isSpare = ({ responses, ms }: Crossing) => responses.length > 1 || ms !== undefined;
      const sizes = this.#records.map((record) => (isSpare(record) ? record.size : 0));
      const most = Math.max(...sizes);
      if (most === 0) return;
      const largest = this.#records[sizes.indexOf(most)]!;
      if (largest.responses.length <= 1) this.#forget(largest);
      // A little more than must be, or a flood would have all records looked through for each of its events.
      else while (this.#size > KEPT_BYTES * 0.9 && largest.responses.length > 1) this.#forgetEvent(largest);
    }
  }

  #forgetEvent(record: Crossing): void {
    const { length } = record.responses.shift()!.bytes;
    record.size -= length + OVERHEAD_BYTES;
    this.#size -= length + OVERHEAD_BYTES;
  }

  #forget(record: Crossing): void {
    this.#records.splice(this.#records.indexOf(record), 1);
    this.#size -= record.size;
    record.size = FORGOTTEN;
  }

  #end(record: Crossing, outcome: Ended): Ended {
    const { code, details } = outcome;
    record.ms = performance.now() - this.#opened - record.at;
    record.status = code;
    record.details = details;
    if (this.onEnd) {
      const sandbox = sandboxOf(shown(record.request, record.method.requestDeserialize) as SandboxRequest);
      const about = [record.name, sandbox].filter(Boolean).join(" ");
      this.onEnd(`${about} → ${codeName(code)} after ${record.ms.toFixed(1)} ms ${details}`.trimEnd());
    }
    return outcome;
  }
}

/** What a transport says of itself, and no handler is told. */
const OF_TRANSPORT = [
  "grpc-timeout",
  "grpc-encoding",
  "grpc-accept-encoding",
  "accept-encoding",
  "te",
  "content-type",
];

/** What a handler would see of a call's headers. */
function metadataOf(headers: IncomingHttpHeaders): grpcJs.Metadata {
  const metadata = grpc().Metadata.fromHttp2Headers(headers);
  for (const name of OF_TRANSPORT) metadata.remove(name);
  return metadata;
}

/** A request that names a sandbox, or carries one. */
export interface SandboxRequest {
  sandbox_id?: string;
  sandbox?: { id?: string };
}

/** The id of the sandbox that a call is about; empty if it is about none. */
export const sandboxOf = ({ sandbox_id, sandbox }: SandboxRequest): string => sandbox_id ?? sandbox?.id ?? "";

/** An event of a watch, of which one field is set. */
interface WatchEvent {
  sandbox?: { sandbox?: { id?: string } };
  deleted?: { sandbox_id?: string };
  platform_event?: { sandbox_id?: string };
}

const sandboxOfEvent = ({ sandbox, deleted, platform_event: event }: WatchEvent): string =>
  sandbox?.sandbox?.id ?? deleted?.sandbox_id ?? event?.sandbox_id ?? "";

/** What a rule does to the events of a watch: sends them twice, in another order, or only the first few. */
function byRule(rule: Rule | undefined, send: (event: Buffer) => void, watch: TappedWatch) {
  const { duplicate, reorder, end } = rule ?? {};
  let held: Buffer | undefined;
  let left = end?.after ?? Infinity;
  const pass = (event: Buffer) => {
    if (left-- > 0) for (const copy of duplicate ? [event, event] : [event]) send(copy);
    if (left <= 0) watch.end(end?.code);
  };
  const release = () => {
    if (held) pass(held);
    held = undefined;
  };
  if (left === 0) watch.end(end?.code);
  if (!reorder) return pass;
  return (event: Buffer) => {
    if (held) {
      pass(event);
      return release();
    }
    held = event;
    setTimeout(release, REORDER_MS);
  };
}

function overlay(method: Method, message: Buffer, rule?: Rule): Buffer {
  if (!rule?.response) return message;
  return method.responseSerialize(merge(method.responseDeserialize(message), rule.response) as object);
}

function merge(value: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
  const merged: Record<string, unknown> = { ...(value as Record<string, unknown> | null) };
  for (const [key, field] of Object.entries(patch)) merged[key] = merge(merged[key], field);
  return merged;
}

function decode(record: Crossing): Call {
  const { seq, name, at, ms, status, details, method } = record;
  return {
    seq,
    method: name,
    at,
    ms,
    status: status === undefined ? undefined : codeName(status),
    details,
    request: shown(record.request, method.requestDeserialize),
    responses: record.responses
      .slice(-SHOWN_EVENTS)
      .map(({ bytes }) => shown(bytes, method.responseDeserialize)),
  };
}

/** The events of a stream that a report has; times since 1970. */
function reported({ responses, method }: Crossing, opened: number): EventRecord[] {
  const kept: EventRecord[] = [];
  const counts = new Map<string, number>();
  for (const { at, bytes } of responses.toReversed()) {
    if (kept.length === REPORTED_EVENTS) break;
    const event = shown(bytes, method.responseDeserialize);
    const sandbox = sandboxOfEvent(event as WatchEvent);
    const count = (counts.get(sandbox) ?? 0) + 1;
    counts.set(sandbox, count);
    if (count <= REPORTED_OF_A_SANDBOX) kept.push({ at: opened + at, sandbox, event });
  }
  return kept.toReversed();
}

/** Bytes that are no message, and why: what a program sent cannot be shown, and what the others sent still is. */
interface Undecodable {
  undecodable: string;
  bytes: number;
}

/** What was decoded once: a scenario that waits for a call looks at all of them again and again. */
const decoded = new WeakMap<Buffer, unknown>();

function shown(bytes: Buffer, deserialize: (bytes: Buffer) => object): unknown {
  const known = decoded.get(bytes);
  if (known) return known;
  const message = readOr(bytes, deserialize);
  decoded.set(bytes, message);
  return message;
}

function readOr(bytes: Buffer, deserialize: (bytes: Buffer) => object): unknown {
  try {
    return redact(deserialize(bytes));
  } catch (error) {
    return { undecodable: (error as Error).message, bytes: bytes.length } satisfies Undecodable;
  }
}

/** How a call ends whose message cannot be read, or changed as a rule says; a gateway that read it would say INTERNAL, too. */
const unreadable = (error: unknown): Ended => ended(status.INTERNAL, (error as Error).message);

/** A copy of a message without secrets and without unset fields. */
export function redact(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(redact);
  if (typeof value !== "object" || value === null || Buffer.isBuffer(value)) return value;
  const kept: Record<string, unknown> = {};
  for (const [key, field] of Object.entries(value)) {
    if (field === null || field === "" || field === undefined) continue;
    kept[key] = SECRET_FIELDS.has(key) ? "<redacted>" : redact(field);
  }
  return kept;
}
