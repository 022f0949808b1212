// SPDX-License-Identifier: Apache-2.0

/** A user's SSH client that is attached to a sandbox's main process, as `openshell sandbox connect` makes one. */
import { once } from "node:events";
import { Duplex } from "node:stream";
import { expect } from "bun:test";
import { Client, type ClientChannel } from "ssh2";
import { eventually, type Sandbox, within } from "../../harness.ts";
import { type CallError, unary } from "../../proto/contract.ts";
import type { TcpForwardFrame__Output } from "../../proto/v0.0/types/openshell/v1/TcpForwardFrame.ts";

const DEADLINE_MS = 15_000;
/** What one attachment may take, from its first byte to its last. */
const LIFE_MS = 60_000;

export class Attachment implements Disposable {
  output = "";
  errors = "";
  exitCode: number | undefined;
  #closed = false;

  private constructor(
    private readonly client: Client,
    private readonly channel: ClientChannel,
  ) {
    channel.on("data", (data: Buffer) => (this.output += String(data)));
    channel.stderr.on("data", (data: Buffer) => (this.errors += String(data)));
    channel.on("exit", (code: number | null) => (this.exitCode = code ?? undefined));
    channel.on("close", () => (this.#closed = true));
  }

  static async open(sandbox: Sandbox): Promise<Attachment> {
    const client = new Client();
    client.connect({ sock: await toSsh(sandbox), username: "sandbox" });
    await within(DEADLINE_MS, "The SSH handshake", once(client, "ready"));
    client.on("error", () => {});
    const attached = new Promise<Attachment>((resolve, reject) =>
      client.subsys("openshell-main", (error, channel) =>
        error ? reject(error) : resolve(new Attachment(client, channel)),
      ),
    );
    return within(DEADLINE_MS, "The attachment", attached);
  }

  type(text: string): void {
    this.channel.write(text);
  }

  /** Waits until the output holds a text. */
  shows = (text: string): Promise<void> =>
    this.#waits(`${JSON.stringify(text)} from the main process`, () => expect(this.output).toContain(text));

  /** Waits until the sandbox has closed it. */
  ended = (): Promise<void> =>
    eventually(() => expect(this.#closed).toBe(true), {
      what: "the attachment to end",
      deadlineMs: DEADLINE_MS,
    });

  #waits(what: string, look: () => void): Promise<void> {
    const failed = () => (this.#closed ? `the attachment is over; it showed ${this.output}` : undefined);
    return eventually(look, { what, deadlineMs: DEADLINE_MS, failed });
  }

  [Symbol.dispose](): void {
    this.client.destroy();
  }
}

/** A byte stream to a sandbox's SSH server. */
async function toSsh({ id, gateway: { api } }: Sandbox): Promise<Duplex> {
  const { token } = await unary(api, api.CreateSshSession, { sandbox_id: id }, { deadlineMs: DEADLINE_MS });
  const call = api.ForwardTcp({ deadline: Date.now() + LIFE_MS });
  const stream = new Duplex({
    // What the gateway ends is over both ways.
    allowHalfOpen: false,
    read() {},
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
  call.on("data", ({ data }: TcpForwardFrame__Output) => stream.push(data));
  call.on("end", () => stream.push(null));
  call.on("error", (error: CallError) => stream.destroy(error));
  call.write({ init: { sandbox_id: id, ssh: {}, authorization_token: token } });
  return stream;
}
