// SPDX-License-Identifier: Apache-2.0

/**
 * Supervisors' sessions and the relays through them. A supervisor holds one ConnectSupervisor stream open; when the
 * gateway needs bytes to and from a sandbox it announces a channel there, and the supervisor opens a RelayStream for it.
 */
import { randomUUID } from "node:crypto";
import { Duplex, type Readable } from "node:stream";
import * as grpc from "@grpc/grpc-js";
import type { GatewayMessage } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { RelayFrame, RelayFrame__Output } from "../../proto/v0.0/types/openshell/v1/RelayFrame.ts";
import type { RelayOpen } from "../../proto/v0.0/types/openshell/v1/RelayOpen.ts";
import type { SupervisorMessage__Output } from "../../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";
import type { Logger } from "../log.ts";
import { internal, invalid, notFound, Status, statusOf, unavailable } from "../status.ts";
import { requireOwn, type Principal } from "./auth.ts";
import { wholeStatus } from "./failure.ts";

const HEARTBEAT_SECONDS = 15;
const RELAY_PENDING_MS = 10_000;
const MAX_PENDING_RELAYS = 256;
const MAX_PENDING_RELAYS_PER_SANDBOX = 32;
const RELAY_CHUNK = 16 * 1024;

type SessionCall = grpc.ServerDuplexStream<SupervisorMessage__Output, GatewayMessage>;
type RelayCall = grpc.ServerDuplexStream<RelayFrame__Output, RelayFrame>;

interface Session {
  id: string;
  call: SessionCall;
}

/** Where a relay leads to, and who asked for it. */
type RelayTarget = Pick<RelayOpen, "ssh" | "tcp" | "service_id">;

interface PendingRelay {
  sandboxId: string;
  announcement: RelayOpen;
  resolve(stream: Duplex): void;
  reject(status: Status): void;
}

/** What becomes of a session's beginning and end. */
export interface SessionEvents {
  exists(sandboxId: string): boolean;
  connected(sandboxId: string, instanceId: string): void;
  disconnected(sandboxId: string): void;
}

export class Sessions {
  #sessions = new Map<string, Session>();
  #pending = new Map<string, PendingRelay>();
  #waiting = new Map<string, Set<() => void>>();
  events!: SessionEvents;

  constructor(private readonly log: Logger) {}

  has = (sandboxId: string) => this.#sessions.has(sandboxId);

  /** Ends a sandbox's session, so that a later start needs a new one. */
  disconnect(sandboxId: string): void {
    const session = this.#sessions.get(sandboxId);
    this.#sessions.delete(sandboxId);
    session?.call.end();
  }

  // Sessions

  /** Serves one ConnectSupervisor stream to its end. */
  async connect(call: SessionCall, principal: Principal): Promise<void> {
    const messages = items(call);
    const first = await messages.next();
    if (first.done) throw invalid("stream closed before hello");
    const hello = first.value.hello;
    if (!hello) throw invalid("expected SupervisorHello");
    const { sandbox_id: sandboxId, instance_id: instanceId } = hello;
    if (sandboxId === "") throw invalid("sandbox_id is required");
    requireOwn(principal, sandboxId);
    if (!this.events.exists(sandboxId)) throw notFound("sandbox not found");

    const session = { id: randomUUID(), call };
    const names = { sandbox_id: sandboxId, session_id: session.id };
    this.log.info("supervisor session: accepted", { ...names, instance_id: instanceId });
    const superseded = this.#sessions.get(sandboxId);
    this.#sessions.set(sandboxId, session);
    if (superseded) {
      this.log.info("supervisor session: superseded previous session", names);
      superseded.call.end();
    }
    call.write({ session_accepted: { session_id: session.id, heartbeat_interval_secs: HEARTBEAT_SECONDS } });
    if (superseded) this.#replay(sandboxId, call);
    this.events.connected(sandboxId, instanceId);
    for (const wake of this.#waiting.get(sandboxId) ?? []) wake();

    const heartbeat = setInterval(() => call.write({ heartbeat: {} }), HEARTBEAT_SECONDS * 1000);
    try {
      for await (const message of messages) this.#heed(message, names);
      this.log.info("supervisor session: stream closed by supervisor", names);
    } catch (error) {
      this.log.warn("supervisor session: stream error", { ...names, error: statusOf(error).details });
    } finally {
      clearInterval(heartbeat);
      if (this.#sessions.get(sandboxId) === session) {
        this.#sessions.delete(sandboxId);
        this.log.info("supervisor session: ended", names);
        this.events.disconnected(sandboxId);
      } else this.log.info("supervisor session: ended (already superseded)", names);
    }
  }

  #heed(message: SupervisorMessage__Output, names: { sandbox_id: string; session_id: string }): void {
    const { relay_open_result: result, relay_close: close } = message;
    if (result?.success) {
      this.log.info("supervisor session: relay opened successfully", {
        ...names,
        channel_id: result.channel_id,
      });
    } else if (result) {
      this.log.warn("supervisor session: relay open failed", {
        ...names,
        channel_id: result.channel_id,
        error: result.error,
      });
      this.#take(result.channel_id)?.reject(unavailable(result.error));
    } else if (close) {
      this.log.info("supervisor session: relay closed by supervisor", {
        ...names,
        channel_id: close.channel_id,
        reason: close.reason,
      });
    } else if (!message.heartbeat) this.log.warn("supervisor session: unexpected message type", names);
  }

  /** A relay announced on a session that was superseded is announced again on the new one. */
  #replay(sandboxId: string, call: SessionCall): void {
    for (const relay of this.#pending.values()) {
      if (relay.sandboxId === sandboxId) call.write({ relay_open: relay.announcement });
    }
  }

  // Relays

  /**
   * Opens a byte stream to the sandbox.
   * @param waitMs how long to wait for a session first
   * @param target its SSH server, unless this names a port of its loopback
   * @throws Status UNAVAILABLE without a session, DEADLINE_EXCEEDED when the supervisor does not open the relay in 10 s
   */
  async openRelay(sandboxId: string, waitMs: number, target: RelayTarget = { ssh: {} }): Promise<Duplex> {
    const call = await this.#session(sandboxId, waitMs).catch((error: unknown) => {
      throw unavailable(`supervisor relay failed: ${wholeStatus(statusOf(error))}`);
    });
    const mine = [...this.#pending.values()].filter((relay) => relay.sandboxId === sandboxId).length;
    if (this.#pending.size >= MAX_PENDING_RELAYS) {
      throw exhausted(`gateway relay capacity reached (${MAX_PENDING_RELAYS} in flight)`);
    }
    if (mine >= MAX_PENDING_RELAYS_PER_SANDBOX) {
      throw exhausted(
        `per-sandbox relay limit reached (${MAX_PENDING_RELAYS_PER_SANDBOX} in flight for ${sandboxId})`,
      );
    }
    const announcement = { channel_id: randomUUID(), ...target };
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(announcement.channel_id);
        reject(new Status(grpc.status.DEADLINE_EXCEEDED, "relay open timed out"));
      }, RELAY_PENDING_MS);
      this.#pending.set(announcement.channel_id, {
        sandboxId,
        announcement,
        resolve: (stream) => {
          clearTimeout(timer);
          resolve(stream);
        },
        reject: (status) => {
          clearTimeout(timer);
          reject(status);
        },
      });
      call.write({ relay_open: announcement });
    });
  }

  async #session(sandboxId: string, waitMs: number): Promise<SessionCall> {
    if (!this.has(sandboxId)) {
      await new Promise<void>((resolve) => {
        const waiters = this.#waiting.get(sandboxId) ?? new Set();
        const done = () => {
          clearTimeout(timer);
          waiters.delete(done);
          if (waiters.size === 0) this.#waiting.delete(sandboxId);
          resolve();
        };
        const timer = setTimeout(done, waitMs);
        this.#waiting.set(sandboxId, waiters.add(done));
      });
    }
    const session = this.#sessions.get(sandboxId);
    if (!session) throw unavailable("supervisor session not connected");
    return session.call;
  }

  #take(channelId: string): PendingRelay | undefined {
    const relay = this.#pending.get(channelId);
    this.#pending.delete(channelId);
    return relay;
  }

  /** Serves one RelayStream to its end, as the far side of what `openRelay` gave out. */
  async relay(call: RelayCall, principal: Principal): Promise<void> {
    const frames = items(call);
    const first = await frames.next();
    if (first.done) throw invalid("empty RelayStream");
    const channelId = first.value.init?.channel_id;
    if (!channelId) throw invalid("first RelayFrame must be init with non-empty channel_id");
    const waiting = this.#pending.get(channelId);
    if (!waiting) throw notFound("unknown or expired relay channel");
    requireOwn(principal, waiting.sandboxId);
    this.#take(channelId);
    this.log.info("relay stream: claimed pending relay, bridging", {
      channel_id: channelId,
      sandbox_id: waiting.sandboxId,
    });

    const stream = relayDuplex(call);
    waiting.resolve(stream);
    try {
      for await (const { data, payload } of frames) {
        if (payload !== "data") throw internal("received non-data frame after init");
        if (data?.length) stream.push(data);
      }
    } catch (error) {
      // Once the near side is done the call is over, which ends the far side's stream early.
      if (stream.destroyed) return;
      this.log.warn("relay stream: inbound errored", {
        channel_id: channelId,
        sandbox_id: waiting.sandboxId,
        error: statusOf(error).details,
      });
    }
    stream.push(null);
  }
}

/** The near side of a relay: what is written to it goes out as frames; incoming frames are pushed into it. */
function relayDuplex(call: RelayCall): Duplex {
  return new Duplex({
    // A supervisor that ends its stream, or dies, ends the relay.
    allowHalfOpen: false,
    read() {},
    write(chunk: Buffer, _encoding, done) {
      for (let start = 0; start < chunk.length; start += RELAY_CHUNK) {
        call.write({ data: chunk.subarray(start, start + RELAY_CHUNK) });
      }
      if (call.writableNeedDrain) call.once("drain", done);
      else done();
    },
    final(done) {
      call.end();
      done();
    },
    destroy(error, done) {
      call.end();
      done(error);
    },
  });
}

/**
 * The messages of a client's stream. The end of a plain `for await` over the call would destroy it, and with it the way
 * back to the client.
 */
export const items = <Item>(call: { read(size?: number): Item }): AsyncGenerator<Item> =>
  (call as unknown as Readable).iterator({ destroyOnReturn: false }) as AsyncGenerator<Item>;

const exhausted = (details: string) =>
  unavailable(`supervisor relay failed: ${wholeStatus({ code: grpc.status.RESOURCE_EXHAUSTED, details })}`);
