// SPDX-License-Identifier: Apache-2.0

import { afterEach, expect, test } from "bun:test";
import { createServer as createHttp2Server } from "node:http2";
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import * as grpc from "@grpc/grpc-js";
import { type CallError, openshell, unary } from "./contract.ts";
import { raisedWindows } from "./raised-windows.ts";

/** The bytes of a frame of the HTTP/2 server below. */
function frame(type: number, stream: number, payload: Buffer, flags = 0): Buffer {
  const header = Buffer.alloc(9);
  header.writeUIntBE(payload.length, 0, 3);
  header[3] = type;
  header[4] = flags;
  header.writeUInt32BE(stream, 5);
  return Buffer.concat([header, payload]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

const settings = (initialWindow: number) =>
  frame(4, 0, Buffer.concat([Buffer.from([0, 4]), uint32(initialWindow)]));
const windowUpdate = (stream: number, increment: number) => frame(8, stream, uint32(increment));

/** An HTTP/2 server that answers no call, and counts the bytes of each stream. */
class CountingServer {
  readonly received = new Map<number, number>();
  socket: Socket | undefined;
  #bytes = Buffer.alloc(0);
  #preface = 24;

  readonly server: Server = createServer((socket) => {
    this.socket = socket;
    socket.write(Buffer.concat([settings(65_535), windowUpdate(0, 100_000_000)]));
    socket.on("data", (data) => this.#read(data));
    socket.on("error", () => {});
  });

  #read(data: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, data]);
    if (this.#bytes.length < this.#preface + 9) return;
    for (let at = this.#preface; ;) {
      const end = at + 9 + (at + 9 <= this.#bytes.length ? this.#bytes.readUIntBE(at, 3) : 0);
      if (at + 9 > this.#bytes.length || end > this.#bytes.length) {
        this.#bytes = this.#bytes.subarray(at);
        this.#preface = 0;
        return;
      }
      const [type, flags, stream] = [
        this.#bytes[at + 3],
        this.#bytes[at + 4]!,
        this.#bytes.readUInt32BE(at + 5),
      ];
      if (type === 0) this.received.set(stream, (this.received.get(stream) ?? 0) + end - at - 9);
      if (type === 4 && (flags & 1) === 0) this.socket?.write(frame(4, 0, Buffer.alloc(0), 1));
      at = end;
    }
  }

  /** Waits until a stream has brought `bytes`, and a moment longer for what would be too much. */
  async brought(stream: number, bytes: number): Promise<void> {
    const deadline = Date.now() + 2_000;
    while ((this.received.get(stream) ?? 0) < bytes && Date.now() < deadline) await Bun.sleep(5);
    await Bun.sleep(50);
    expect(this.received.get(stream)).toBe(bytes);
  }
}

const counting = new CountingServer();
afterEach(() => {
  counting.socket?.destroy();
  counting.server.close();
});

test("a raised initial window counts for open streams and for later ones, to the byte", async () => {
  await new Promise<void>((resolve) => counting.server.listen(0, "127.0.0.1", resolve));
  const { port } = counting.server.address() as AddressInfo;
  const credentials = raisedWindows(grpc.credentials.createInsecure());
  const client = new (openshell().OpenShell)(`127.0.0.1:${port}`, credentials);
  const upload = () => {
    const call = client.relayStream({ deadline: Date.now() + 10_000 });
    call.on("error", () => {});
    for (let sent = 0; sent < 2_000_000; sent += 100_000) call.write({ data: Buffer.alloc(100_000) });
    return call;
  };
  const first = upload();
  await counting.brought(1, 65_535);
  counting.socket!.write(windowUpdate(1, 300_000));
  await counting.brought(1, 365_535);
  counting.socket!.write(settings(262_140));
  await counting.brought(1, 365_535 + 262_140 - 65_535);
  first.cancel();
  const second = upload();
  await counting.brought(3, 262_140);
  counting.socket!.write(settings(300_000));
  await counting.brought(3, 300_000);
  second.cancel();
  client.close();
});

test("a server that goes away at once is unavailable to every call, and no call goes on for ever", async () => {
  const server = createHttp2Server();
  server.on("session", (session) => session.on("error", () => {}).goaway(0));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const plain = grpc.credentials.createInsecure();
  for (const credentials of [plain, raisedWindows(plain)]) {
    for (let connection = 0; connection < 30; connection++) {
      const client = new (openshell().OpenShell)(`127.0.0.1:${port}`, credentials);
      const failure = await unary(client, client.Health, {}, { deadlineMs: 2_000 }).catch(
        (error: CallError) => error,
      );
      expect(failure).toMatchObject({ code: grpc.status.UNAVAILABLE });
      client.close();
    }
  }
  server.close();
});

test("what a server sends right behind its first settings arrives whole and in order", async () => {
  const server = createServer((socket) => {
    // SETTINGS, and in the same packet half of a PING; the rest of it follows at once.
    const ping = frame(6, 0, Buffer.from("12345678"));
    socket.write(Buffer.concat([settings(70_000), ping.subarray(0, 7)]));
    socket.write(ping.subarray(7));
    socket.on("data", (data) => {
      received = Buffer.concat([received, data]);
      if (received.includes(frame(6, 0, Buffer.from("12345678"), 1))) answered.resolve();
    });
    socket.on("error", () => {});
  });
  let received: Buffer = Buffer.alloc(0);
  const answered = Promise.withResolvers<void>();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const client = new (openshell().OpenShell)(
    `127.0.0.1:${port}`,
    raisedWindows(grpc.credentials.createInsecure()),
  );
  client.waitForReady(Date.now() + 2_000, () => {});
  await answered.promise;
  client.close();
  server.close();
});
