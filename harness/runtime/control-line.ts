// SPDX-License-Identifier: Apache-2.0

/** The form of what crosses a keeper's control socket: one JSON object a line. */
import { connect } from "node:net";

/** Answered at once, also while a keeper is still starting. Asking it makes nobody an owner of the run. */
export const ALIVE = "alive";

/** How long a keeper that is not stuck may take to say that it is alive, in milliseconds. */
const ALIVE_MS = 3_000;

/**
 * Who answers on a control socket: its keeper; nobody who listens ("nobody"); or somebody who is stopped or stuck
 * ("silent"), for whom the kernel takes connections all the same.
 */
export function whoAnswers(path: string, deadlineMs = ALIVE_MS): Promise<"keeper" | "silent" | "nobody"> {
  return new Promise((done) => {
    const socket = connect(path);
    const end = (who: "keeper" | "silent" | "nobody") => {
      clearTimeout(timer);
      socket.destroy();
      done(who);
    };
    const timer = setTimeout(end, deadlineMs, "silent");
    socket.on("error", () => end("nobody"));
    socket.once("data", () => end("keeper"));
    socket.once("connect", () => socket.write(`${JSON.stringify({ id: 1, method: ALIVE, args: [] })}\n`));
  });
}

/** One message of a control socket; empty when the line holds none, as when its writer was killed half-way. */
export function parseLine<Message extends object>(line: string): Partial<Message> {
  try {
    const parsed: unknown = JSON.parse(line);
    return typeof parsed === "object" && parsed !== null ? parsed : {};
  } catch {
    return {};
  }
}
