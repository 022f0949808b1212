// SPDX-License-Identifier: Apache-2.0

/** A supervisor in the test process: a session that a scenario opens and closes, and an SSH server behind its relays. */
import { generateKeyPairSync } from "node:crypto";
import { Duplex } from "node:stream";
import * as grpc from "@grpc/grpc-js";
import { Server as SshServer, type Connection, type ServerChannel } from "ssh2";
import { eventually } from "../../harness.ts";
import type { GatewayMessage__Output } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { SupervisorMessage } from "../../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";

/** A supervisor's session, and an SSH server behind its relays that runs commands with `sh -c` on this machine. */
export class ScriptedSupervisor {
  readonly messages: GatewayMessage__Output[] = [];
  /** Commands as they came over SSH, with the terminal size if there was a terminal. */
  readonly commands: { command: string; sizes: string[]; closed: boolean }[] = [];
  ended: grpc.StatusObject | undefined;
  /** How a relay is answered: with the SSH server, with what it sends itself, with a refusal, or not at all. */
  relays: "served" | "echoed" | "refused" | "ignored" = "served";
  #call: grpc.ClientDuplexStream<SupervisorMessage, GatewayMessage__Output>;
  #relays: { cancel(): void }[] = [];

  constructor(
    private readonly client: OpenShellClient,
    private readonly id: string,
    private readonly token: string,
    instanceId = "instance-1",
  ) {
    this.#call = client.ConnectSupervisor(this.metadata());
    this.#call.on("error", () => {});
    this.#call.on("status", (status: grpc.StatusObject) => (this.ended = status));
    this.#call.on("data", (message: GatewayMessage__Output) => {
      this.messages.push(message);
      if (message.relay_open) this.#openRelay(message.relay_open.channel_id);
    });
    this.#call.write({ hello: { sandbox_id: id, instance_id: instanceId } });
  }

  metadata(): grpc.Metadata {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${this.token}`);
    return metadata;
  }

  /** The gateway's word that the session stands. @throws HarnessError with how the stream ended instead. */
  accepted(): Promise<GatewayMessage__Output> {
    const look = () => {
      const accepted = this.messages.find(({ payload }) => payload === "session_accepted");
      if (!accepted) throw new Error(`messages: ${Bun.inspect(this.messages)}`);
      return accepted;
    };
    const failed = () => this.ended && `the stream ended with ${this.ended.code} ${this.ended.details}`;
    return eventually(look, { what: `a session for ${this.id}`, failed });
  }

  /** How the gateway ended the stream. */
  end(): Promise<grpc.StatusObject> {
    const look = () => {
      if (!this.ended) throw new Error("it is open");
      return this.ended;
    };
    return eventually(look, { what: `the end of the session for ${this.id}` });
  }

  close(): void {
    this.#call.end();
  }

  /** Breaks off everything at once. */
  die(): void {
    for (const call of [this.#call, ...this.#relays]) call.cancel();
  }

  #openRelay(channelId: string): void {
    if (this.relays === "ignored") return;
    const success = this.relays !== "refused";
    this.#call.write({
      relay_open_result: { channel_id: channelId, success, error: success ? "" : "no SSH here" },
    });
    if (!success) return;
    const call = this.client.RelayStream(this.metadata());
    this.#relays.push(call);
    call.write({ init: { channel_id: channelId } });
    const stream = new Duplex({
      read() {},
      write(data: Buffer, _encoding, done) {
        call.write({ data });
        done();
      },
      final(done) {
        call.end();
        done();
      },
    });
    call.on("data", ({ data }: { data?: Buffer }) => data && stream.push(data));
    call.on("end", () => stream.push(null));
    call.on("error", () => stream.destroy());
    if (this.relays === "echoed") return void stream.pipe(stream);
    const server = new SshServer({ hostKeys: [hostKey()] }, (connection) => this.#serveSsh(connection));
    server.injectSocket(stream as never);
  }

  #serveSsh(connection: Connection): void {
    connection.on("error", () => {});
    connection.on("authentication", (context) =>
      context.method === "none" && context.username === "sandbox" ? context.accept() : context.reject(),
    );
    connection.on("session", (accept) => {
      const session = accept();
      const sizes: string[] = [];
      session.on("pty", (accepted, _reject, info) => {
        sizes.push(`${info.cols}x${info.rows}`);
        accepted?.();
      });
      session.on("window-change", (accepted, _reject, info) => {
        sizes.push(`${info.cols}x${info.rows}`);
        accepted?.();
      });
      session.on("exec", (accepted, _reject, { command }) => {
        const record = { command, sizes, closed: false };
        this.commands.push(record);
        const channel = accepted();
        channel.on("close", () => (record.closed = true));
        void run(command, channel);
      });
    });
  }
}

async function run(command: string, channel: ServerChannel): Promise<void> {
  const child = Bun.spawn(["sh", "-c", command], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
    detached: true,
  });
  channel.on("data", (data: Buffer) => {
    child.stdin.write(data);
    void child.stdin.flush();
  });
  channel.on("end", () => void child.stdin.end());
  channel.on("close", () => {
    // The whole group: a shell that dies leaves its children.
    if (child.exitCode === null) process.kill(-child.pid, "SIGKILL");
  });
  const copy = async (from: ReadableStream<Uint8Array>, to: { write(data: Uint8Array): unknown }) => {
    for await (const data of from) to.write(data);
  };
  await Promise.all([copy(child.stdout, channel), copy(child.stderr, channel.stderr)]);
  channel.exit(await child.exited);
  channel.end();
}

let key: string | undefined;
const hostKey = () =>
  (key ??= generateKeyPairSync("rsa", { modulusLength: 2048 })
    .privateKey.export({ type: "pkcs1", format: "pem" })
    .toString());
