// SPDX-License-Identifier: Apache-2.0

/**
 * The session that makes the sandbox Ready, and opens relays at the gateway's word.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type * as grpc from "@grpc/grpc-js";
import type { Server } from "ssh2";
import type { GatewayMessage__Output } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import { ACCEPT_DEADLINE, describe, RETRY, type Gateway } from "./gateway.ts";
import type { Log } from "./log.ts";
import { openRelay, type SessionCall } from "./relays.ts";

/** What a session needs, and whom it serves. */
interface SessionContext {
  gateway: Gateway;
  hello: { sandbox_id: string; instance_id: string };
  server: () => Promise<Server>;
  log: Log;
  stopped: AbortSignal;
}

/** Holds a session open until `stopped`: when one ends, the next is tried after a growing delay. */
export async function holdSession(context: SessionContext): Promise<void> {
  let delay = RETRY.first;
  while (!context.stopped.aborted) {
    const { accepted, reason } = await oneSession(context);
    if (context.stopped.aborted) return;
    delay = accepted ? RETRY.first : Math.min(delay * 2, RETRY.max);
    context.log.write("warn", `supervisor session ended, next try in ${delay} ms: ${reason}`);
    await sleep(delay, undefined, { signal: context.stopped }).catch(() => {});
  }
}

function oneSession({ gateway, hello, server, log, stopped }: SessionContext) {
  return new Promise<{ accepted: boolean; reason: string }>((resolve) => {
    let accepted = false;
    let heartbeat: Timer | undefined;
    const call: SessionCall = gateway.client.connectSupervisor(gateway.metadata({ waitForReady: true }));
    const unanswered = setTimeout(() => end(`no answer to hello for ${ACCEPT_DEADLINE} ms`), ACCEPT_DEADLINE);
    const stop = () => end("stopped");
    stopped.addEventListener("abort", stop);

    function end(reason: string): void {
      clearTimeout(unanswered);
      clearInterval(heartbeat);
      stopped.removeEventListener("abort", stop);
      call.cancel();
      resolve({ accepted, reason });
    }

    call.on("error", (error: grpc.ServiceError) => end(describe(error)));
    call.on("end", () => end("the gateway closed the stream"));
    call.on("data", (message: GatewayMessage__Output) => {
      switch (message.payload) {
        case "session_accepted": {
          accepted = true;
          clearTimeout(unanswered);
          const { session_id, heartbeat_interval_secs } = message.session_accepted!;
          heartbeat = setInterval(
            () => call.write({ heartbeat: {} }),
            Math.max(heartbeat_interval_secs, 5) * 1_000,
          );
          log.write("info", "supervisor session established", { session_id });
          return;
        }
        case "session_rejected":
          return end(`rejected: ${message.session_rejected!.reason}`);
        case "relay_open":
          void openRelay(gateway, call, message.relay_open!, server, log);
          return;
        case "relay_close":
          log.write("info", "relay closed by the gateway", { channel_id: message.relay_close!.channel_id });
          return;
        case "heartbeat":
          return;
        default:
          log.write("warn", `unexpected message from the gateway: ${String(message.payload)}`);
      }
    });
    call.write({ hello });
  });
}
