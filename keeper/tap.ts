// SPDX-License-Identifier: Apache-2.0

/**
 * The tap: a proxy on the socket that the gateway's config names, in front of the driver's own socket.
 *
 * It passes each call through as bytes, without reading them, and keeps what crossed: method, request, responses,
 * status and times. Rules make it delay, fail, rewrite or hang a call. Messages are decoded only when somebody looks
 * at them, with secret fields redacted, so an idle tap costs a copy of a reference.
 */
import * as grpc from "@grpc/grpc-js";
import { chmodSync, unlinkSync } from "node:fs";
import { codeName, computeDriver } from "../proto/contract.ts";

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

/** What to do with calls of one method. Everything here can cross a control socket as JSON. */
export interface Rule {
  method: string;
  /** How many calls it applies to; without it, every one until the rules change. */
  times?: number;
  /** Wait this many milliseconds before passing the call on. */
  delayMs?: number;
  /** Answer with this status instead of passing the call on. */
  fail?: { code: number; message: string };
  /** Answer nothing until the caller gives up. */
  hang?: boolean;
  /** Laid over each response, field by field; `null` unsets a field. */
  response?: Record<string, unknown>;
}

/** Fields marked `secret` in the contract (proto/v0.0, option 50001), redacted wherever they show up. */
export const SECRET_FIELDS: ReadonlySet<string> = new Set(["sandbox_token", "token"]);

const KEPT_CALLS = 5_000;
const KEPT_RESPONSES = 1_000;
const UNLIMITED = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };

interface Cancellable {
  once(event: "cancelled", listener: () => void): unknown;
}

interface Crossing {
  seq: number;
  method: grpc.MethodDefinition<object, object>;
  name: string;
  at: number;
  ms?: number;
  status?: grpc.status;
  details?: string;
  request: Buffer;
  responses: Buffer[];
}

const asIs = (bytes: Buffer): Buffer => bytes;

/** An open tap. `close` ends every call that is under way and removes the socket. */
export class Tap {
  rules: Rule[] = [];
  readonly #records: Crossing[] = [];
  readonly #opened = performance.now();
  readonly #driverReady: Promise<boolean>;
  #driverIsReady = false;
  #seq = 0;

  private constructor(
    readonly socket: string,
    readonly upstream: grpc.Client,
    readonly server: grpc.Server,
    readonly onCreate: (sandboxId: string) => void,
    driverReady: Promise<unknown>,
  ) {
    // A driver that never became ready is a driver that is not there: calls go on and find that out.
    const ready = () => {
      this.#driverIsReady = true;
      return false;
    };
    this.#driverReady = driverReady.then(ready, ready);
  }

  /**
   * Listens on `socket` (mode 0600) and dials the driver's `upstream` socket.
   * @param onCreate told each sandbox id before its CreateSandbox is passed on, so that nothing made can be forgotten.
   * @param driverReady calls are held until then, so that gateway and driver can be started side by side.
   */
  static async open(
    socket: string,
    upstream: string,
    onCreate: (sandboxId: string) => void,
    driverReady: Promise<unknown>,
  ): Promise<Tap> {
    const client = new grpc.Client(`unix:${upstream}`, grpc.credentials.createInsecure(), {
      ...UNLIMITED,
      // A driver that comes back on its path is found again at once: the gateway redials on every call, so must we.
      "grpc.initial_reconnect_backoff_ms": 20,
      "grpc.max_reconnect_backoff_ms": 50,
    });
    const server = new grpc.Server(UNLIMITED);
    const tap = new Tap(socket, client, server, onCreate, driverReady);
    server.addService(...tap.#service());
    await new Promise<void>((resolve, reject) =>
      server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      ),
    );
    chmodSync(socket, 0o600);
    return tap;
  }

  /** Waits until the tap has found a driver that came back; calls before that would fail as if it were still gone. */
  reconnected(deadlineMs: number): Promise<void> {
    return new Promise((done, failed) =>
      this.upstream.waitForReady(Date.now() + deadlineMs, (error) => (error ? failed(error) : done())),
    );
  }

  close(): void {
    this.server.forceShutdown();
    this.upstream.close();
    try {
      unlinkSync(this.socket);
    } catch {
      // The server removes it itself on some platforms.
    }
  }

  /** What crossed since call number `since`, oldest first, decoded and redacted. */
  calls(since = 0): Call[] {
    return this.#records.filter((record) => record.seq > since).map(decode);
  }

  /** The number of the last call, to ask later for what came after it. */
  get seq(): number {
    return this.#seq;
  }

  // Serving

  #service(): [grpc.ServiceDefinition, grpc.UntypedServiceImplementation] {
    const service: Record<string, grpc.MethodDefinition<Buffer, Buffer>> = {};
    const handlers: grpc.UntypedServiceImplementation = {};
    for (const [name, definition] of Object.entries(computeDriver().ComputeDriver.service)) {
      const method = definition as grpc.MethodDefinition<object, object>;
      service[name] = {
        ...method,
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: asIs,
        responseDeserialize: asIs,
      };
      handlers[name] = method.responseStream
        ? (call: grpc.ServerWritableStream<Buffer, Buffer>) => void this.#stream(name, method, call)
        : (call: grpc.ServerUnaryCall<Buffer, Buffer>, reply: grpc.sendUnaryData<Buffer>) =>
            void this.#unary(name, method, call, reply);
    }
    return [service, handlers];
  }

  async #unary(
    name: string,
    method: grpc.MethodDefinition<object, object>,
    call: grpc.ServerUnaryCall<Buffer, Buffer>,
    reply: grpc.sendUnaryData<Buffer>,
  ): Promise<void> {
    const record = this.#record(name, method, call.request);
    const rule = this.#rule(name);
    if (this.#mustHold(rule) && (await this.#held(record, rule, call))) return;
    if (rule?.fail) return reply(this.#end(record, rule.fail.code, rule.fail.message));

    const upstream = this.upstream.makeUnaryRequest(
      method.path,
      asIs,
      asIs,
      call.request,
      call.metadata,
      { deadline: call.getDeadline() },
      (error, response) => {
        if (error) return reply(this.#end(record, error.code, error.details, error.metadata));
        const answer = overlay(method, response as Buffer, rule);
        record.responses.push(answer);
        this.#end(record, grpc.status.OK);
        reply(null, answer);
      },
    );
    call.on("cancelled", () => upstream.cancel());
  }

  async #stream(
    name: string,
    method: grpc.MethodDefinition<object, object>,
    call: grpc.ServerWritableStream<Buffer, Buffer>,
  ): Promise<void> {
    const record = this.#record(name, method, call.request);
    const rule = this.#rule(name);
    if (this.#mustHold(rule) && (await this.#held(record, rule, call))) return;
    if (rule?.fail) return void call.emit("error", this.#end(record, rule.fail.code, rule.fail.message));

    const upstream = this.upstream.makeServerStreamRequest(
      method.path,
      asIs,
      asIs,
      call.request,
      call.metadata,
    );
    call.on("cancelled", () => upstream.cancel());
    call.on("drain", () => upstream.resume());
    upstream.on("metadata", (metadata: grpc.Metadata) => call.sendMetadata(metadata));
    upstream.on("data", (message: Buffer) => {
      const item = overlay(method, message, rule);
      record.responses.push(item);
      if (record.responses.length > KEPT_RESPONSES) record.responses.shift();
      if (!call.write(item)) upstream.pause();
    });
    // The status event follows, with the same code; without a listener an error event would end the process.
    upstream.on("error", () => {});
    upstream.on("status", (status: grpc.StatusObject) => {
      const ended = this.#end(record, status.code, status.details, status.metadata);
      if (status.code === grpc.status.OK) call.end(status.metadata);
      else call.emit("error", ended);
    });
  }

  /** Most calls pass at once: waiting for nothing would cost each of them a turn of the event loop. */
  #mustHold(rule: Rule | undefined): boolean {
    return !this.#driverIsReady || rule?.hang === true || Boolean(rule?.delayMs);
  }

  /** Delays or hangs a call as its rule says; true when there is nothing left to do for it. */
  async #held(record: Crossing, rule: Rule | undefined, call: Cancellable): Promise<boolean> {
    const gone = new Promise<true>((resolve) =>
      call.once("cancelled", () => {
        if (record.ms === undefined) this.#end(record, grpc.status.CANCELLED);
        resolve(true);
      }),
    );
    if (await Promise.race([gone, this.#driverReady])) return true;
    if (rule?.hang) return gone;
    if (rule?.delayMs) return Promise.race([gone, Bun.sleep(rule.delayMs).then(() => false)]);
    return false;
  }

  #rule(method: string): Rule | undefined {
    const rule = this.rules.find((candidate) => candidate.method === method && candidate.times !== 0);
    if (rule?.times !== undefined) rule.times--;
    return rule;
  }

  // Recording

  #record(name: string, method: grpc.MethodDefinition<object, object>, request: Buffer): Crossing {
    const at = performance.now() - this.#opened;
    const record: Crossing = { seq: ++this.#seq, name, method, at, request, responses: [] };
    if (name === "CreateSandbox") this.onCreate(sandboxIdOf(method.requestDeserialize(request)));
    this.#records.push(record);
    if (this.#records.length > KEPT_CALLS) this.#records.shift();
    return record;
  }

  #end(record: Crossing, code: grpc.status, details = "", metadata?: grpc.Metadata) {
    record.ms = performance.now() - this.#opened - record.at;
    record.status = code;
    record.details = details;
    return { code, details, metadata };
  }
}

function sandboxIdOf(request: object): string {
  return (request as { sandbox?: { id?: string } | null }).sandbox?.id ?? "";
}

function overlay(method: grpc.MethodDefinition<object, object>, message: Buffer, rule?: Rule): Buffer {
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
    request: redact(method.requestDeserialize(record.request)),
    responses: record.responses.map((bytes) => redact(method.responseDeserialize(bytes))),
  };
}

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
