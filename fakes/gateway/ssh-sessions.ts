// SPDX-License-Identifier: Apache-2.0

/**
 * Users' own SSH clients: a session is a token for one sandbox, and whoever has it may open byte streams to that sandbox.
 */
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import type * as grpc from "@grpc/grpc-js";
import type { CreateSshSessionResponse } from "../../proto/v0.0/types/openshell/v1/CreateSshSessionResponse.ts";
import type {
  TcpForwardFrame,
  TcpForwardFrame__Output,
} from "../../proto/v0.0/types/openshell/v1/TcpForwardFrame.ts";
import type { TcpForwardInit__Output } from "../../proto/v0.0/types/openshell/v1/TcpForwardInit.ts";
import { exhausted, invalid, precondition, unauthenticated } from "../status.ts";
import { generateName } from "./names.ts";
import { phaseOf } from "./phases.ts";
import { items, type Sessions } from "./sessions.ts";
import type { Settings } from "./settings.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { Store } from "./store.ts";

const SESSION_WAIT_MS = 15_000;
const MAX_STREAMS_PER_TOKEN = 3;
const MAX_STREAMS_PER_SANDBOX = 20;

export type ForwardCall = grpc.ServerDuplexStream<TcpForwardFrame__Output, TcpForwardFrame>;

export class SshSessions {
  /** Open streams by token, and by sandbox. */
  readonly #streams = new Map<string, number>();

  constructor(
    private readonly store: Store,
    private readonly sessions: Sessions,
    private readonly settings: Settings["ssh"],
  ) {}

  create(sandbox: Sandbox__Output): CreateSshSessionResponse {
    mustBeReady(sandbox);
    const { host, port, scheme, ttlSeconds } = this.settings;
    const { id, workspace } = sandbox.metadata!;
    const [token, now] = [randomUUID(), Date.now()];
    const expires_at_ms = String(ttlSeconds > 0 ? now + ttlSeconds * 1_000 : 0);
    this.store.sshSessions.insert({
      metadata: {
        id: token,
        name: generateName(),
        workspace,
        created_at_ms: String(now),
        labels: {},
        annotations: {},
        resource_version: "0",
        deletion_timestamp_ms: "0",
      },
      sandbox_id: id,
      token,
      expires_at_ms,
      revoked: false,
    });
    const gateway = { gateway_host: host, gateway_port: port, gateway_scheme: scheme };
    return { sandbox_id: id, token, ...gateway, host_key_fingerprint: "", expires_at_ms };
  }

  /** Returns whether there was such a session. */
  revoke(token: string): boolean {
    if (token === "") throw invalid("token is required");
    const revoked = this.store.sshSessions.update(token, (session) => void (session.revoked = true));
    return revoked !== undefined;
  }

  /**
   * Serves one ForwardTcp to its end.
   * @param find the sandbox of an id. @throws Status NOT_FOUND
   */
  async forward(call: ForwardCall, find: (id: string) => Sandbox__Output): Promise<void> {
    const frames = items(call);
    const first = await frames.next();
    if (first.done) throw invalid("empty ForwardTcp stream");
    const { init } = first.value;
    if (!init) throw invalid("first TcpForwardFrame must be init");
    const target = targetOf(init);
    mustBeReady(find(init.sandbox_id));
    const release = this.#admit(init);
    try {
      const { sandbox_id, service_id } = init;
      const relay = await this.sessions.openRelay(sandbox_id, SESSION_WAIT_MS, { ...target, service_id });
      call.once("cancelled", () => relay.destroy());
      const sending = (async () => {
        for await (const { payload, data } of frames) {
          if (payload !== "data") break;
          if (data?.length && !relay.write(data)) await once(relay, "drain");
        }
      })();
      // A client that has left, or a relay that is over.
      void sending.catch(() => {}).then(() => relay.end());
      for await (const data of relay) {
        if (!call.write({ data: data as Buffer }))
          await Promise.race([once(call, "drain"), once(call, "close")]);
      }
    } finally {
      release();
    }
  }

  /** Checks a stream's token and counts it. Returns what takes it off the count again. */
  #admit({ authorization_token, sandbox_id }: TcpForwardInit__Output): () => void {
    const token = authorization_token.trim();
    if (token === "") throw unauthenticated("authorization_token is required for ForwardTcp");
    const session = this.store.sshSessions.get(token);
    if (!session) throw unauthenticated("SSH session token not found");
    if (session.revoked || session.sandbox_id !== sandbox_id)
      throw unauthenticated("SSH session token is not valid");
    const expires = Number(session.expires_at_ms);
    if (expires > 0 && Date.now() > expires) throw unauthenticated("SSH session token expired");
    const open = (key: string) => this.#streams.get(key) ?? 0;
    if (open(token) >= MAX_STREAMS_PER_TOKEN) throw exhausted("SSH session connection limit reached");
    if (open(sandbox_id) >= MAX_STREAMS_PER_SANDBOX) throw exhausted("sandbox SSH connection limit reached");
    const count = (by: number) => {
      for (const key of [token, sandbox_id]) this.#streams.set(key, open(key) + by);
    };
    count(1);
    return () => count(-1);
  }
}

function mustBeReady(sandbox: Sandbox__Output): void {
  if (phaseOf(sandbox) !== "Ready") throw precondition("sandbox is not ready");
}

/** Where a stream is to lead. @throws Status INVALID_ARGUMENT for what is no place in a sandbox */
function targetOf({ sandbox_id, target, tcp }: TcpForwardInit__Output) {
  if (sandbox_id === "") throw invalid("sandbox_id is required");
  if (target === "ssh") return { ssh: {} };
  if (target !== "tcp" || !tcp) throw invalid("tcp forward target is required");
  if (tcp.port < 1 || tcp.port > 65_535) throw invalid("tcp target port must be between 1 and 65535");
  const named = tcp.host.trim();
  if (named === "") throw invalid("tcp target host is required");
  const host = named.toLowerCase() === "localhost" ? "127.0.0.1" : named;
  if (!/^127(\.\d{1,3}){3}$|^::1$/.test(host)) throw invalid("tcp target host must be loopback");
  return { tcp: { host, port: tcp.port } };
}
