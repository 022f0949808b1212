// SPDX-License-Identifier: Apache-2.0

/** For tests: a client as the gateway's is, below gRPC. */
import { connect } from "node:net";

/**
 * One call over plain HTTP/2 frames, by a client that pays no heed to GOAWAY and never hangs up, as the gateway's. The
 * one in grpc-js drops its connection when it is told to go away.
 */
export class StubbornCall implements Disposable {
  private readonly connection;
  closed = false;

  constructor(socket: string, method: string, message: Uint8Array) {
    const frame = (type: number, flags: number, stream: number, payload: Uint8Array): Buffer => {
      const header = Buffer.alloc(9);
      header.writeUIntBE(payload.length, 0, 3);
      header.set([type, flags], 3);
      header.writeUInt32BE(stream, 5);
      return Buffer.concat([header, payload]);
    };
    const text = (value: string): Buffer => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)]);
    const headers = Object.entries({
      ":method": "POST",
      ":scheme": "http",
      ":path": `/openshell.compute.v1.ComputeDriver/${method}`,
      ":authority": "[::]:50051",
      "content-type": "application/grpc",
      te: "trailers",
    }).map(([name, value]) => Buffer.concat([Buffer.from([0]), text(name), text(value)]));
    const body = Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]);
    this.connection = connect(socket);
    this.connection.on("close", () => (this.closed = true));
    this.connection.on("error", () => {});
    let received = Buffer.alloc(0);
    this.connection.on("data", (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      while (received.length >= 9 && received.length >= 9 + received.readUIntBE(0, 3)) {
        const end = 9 + received.readUIntBE(0, 3);
        const [type, flags] = [received[3], received[4]];
        // A server asks with PING whether the client has seen its GOAWAY.
        if (type === 6 && flags === 0) this.connection.write(frame(6, 1, 0, received.subarray(9, end)));
        received = received.subarray(end);
      }
    });
    this.connection.write(
      Buffer.concat([
        Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        frame(4, 0, 0, new Uint8Array()),
        frame(1, 4, 1, Buffer.concat(headers)),
        frame(0, 1, 1, body),
        frame(4, 1, 0, new Uint8Array()),
      ]),
    );
  }

  [Symbol.dispose](): void {
    this.connection.destroy();
  }
}
