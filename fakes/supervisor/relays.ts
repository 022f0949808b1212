// SPDX-License-Identifier: Apache-2.0

/**
 * Relays: byte streams that the gateway opens to the SSH server or to a port of the sandbox.
 */
import { connect, type Socket } from "node:net";
import { Duplex } from "node:stream";
import type * as grpc from "@grpc/grpc-js";
import type { Server } from "ssh2";
import type { GatewayMessage__Output } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { RelayFrame, RelayFrame__Output } from "../../proto/v0.0/types/openshell/v1/RelayFrame.ts";
import type { RelayOpen__Output } from "../../proto/v0.0/types/openshell/v1/RelayOpen.ts";
import type { SupervisorMessage } from "../../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";
import type { TcpRelayTarget__Output } from "../../proto/v0.0/types/openshell/v1/TcpRelayTarget.ts";
import { describe, type Gateway } from "./gateway.ts";
import type { Log } from "./log.ts";

export type SessionCall = grpc.ClientDuplexStream<SupervisorMessage, GatewayMessage__Output>;

type RelayCall = grpc.ClientDuplexStream<RelayFrame, RelayFrame__Output>;

/** The bytes of a RelayStream as a Node stream, with back-pressure both ways. It is over when the gateway ends it. */
function relayStream(call: RelayCall): Duplex {
  const stream = new Duplex({
    allowHalfOpen: false,
    read: () => void call.resume(),
    write: (data: Buffer, _encoding, done) => void call.write({ data }, () => done()),
    final(done) {
      call.end();
      done();
    },
    destroy(error, done) {
      call.cancel();
      done(error);
    },
  });
  call.on("data", ({ data }: RelayFrame__Output) => {
    if (data && data.length > 0 && !stream.push(data)) call.pause();
  });
  call.on("end", () => stream.push(null));
  call.on("error", (error: Error) => stream.destroy(error));
  return stream;
}

/** Connects to a port of the sandbox. @throws for anything but a loopback address and a port from 1 to 65535. */
export async function dialLoopback({
  host,
  port,
}: Pick<TcpRelayTarget__Output, "host" | "port">): Promise<Duplex> {
  const address = host.trim().toLowerCase() === "localhost" ? "127.0.0.1" : host.trim();
  if (port < 1 || port > 65_535) throw new Error(`tcp target port must be between 1 and 65535, got ${port}`);
  if (!/^127(\.\d+){3}$|^::1$/.test(address))
    throw new Error(`tcp target host must be loopback, got '${host}'`);
  return new Promise((resolve, reject) => {
    const socket = connect({ host: address, port, allowHalfOpen: true, noDelay: true });
    socket.once("connect", () => resolve(socket)).once("error", reject);
  });
}

/** Joins a relay with its target until either is over; what the target sent before its end still arrives. */
export function bridge(relay: Duplex, target: Duplex): void {
  relay.on("close", () => target.destroy()).on("error", () => {});
  target.on("error", () => relay.destroy());
  relay.pipe(target).pipe(relay);
}

export async function openRelay(
  gateway: Gateway,
  session: SessionCall,
  open: RelayOpen__Output,
  server: () => Promise<Server>,
  log: Log,
) {
  const { channel_id } = open;
  const answer = (success: boolean, error = "") =>
    session.write({ relay_open_result: { channel_id, success, error } });
  try {
    const target = open.target === "tcp" ? await dialLoopback(open.tcp!) : undefined;
    const ssh = target ? undefined : await server();
    answer(true);
    const call = gateway.client.relayStream(gateway.metadata());
    call.write({ init: { channel_id } });
    const relay = relayStream(call);
    relay.on("error", (error) => log.write("debug", `relay: ${error.message}`));
    if (target) bridge(relay, target);
    else ssh!.injectSocket(relay as Socket);
  } catch (error) {
    log.write("warn", `relay refused: ${describe(error)}`);
    answer(false, describe(error));
  }
}
