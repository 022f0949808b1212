// SPDX-License-Identifier: Apache-2.0

/** Whether this machine can call itself: a network namespace of its own, as build sandboxes have, may have lo down. */
import { type AddressInfo, connect, createServer } from "node:net";
import { HarnessError } from "./errors.ts";
import { within } from "./waiting.ts";

const DEADLINE_MS = 2_000;

/** @throws HarnessError when nobody can be reached on 127.0.0.1, where a gateway listens; the gateway would be blamed. */
export async function mustReachLoopback(): Promise<void> {
  const server = createServer((socket) => socket.destroy());
  try {
    await within(DEADLINE_MS, "no answer", callOf(server));
  } catch (error) {
    throw new HarnessError(
      `127.0.0.1 cannot be reached from this machine itself: ${(error as Error).message}\n` +
        "  A network namespace has its interface down at first: `ip link set lo up`; or a firewall forbids it",
    );
  } finally {
    server.close();
  }
}

function callOf(server: ReturnType<typeof createServer>): Promise<void> {
  return new Promise((done, reject) => {
    server.once("error", reject).listen(0, "127.0.0.1", () => {
      const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
      socket.on("error", reject).once("connect", () => {
        socket.destroy();
        done();
      });
    });
  });
}
