// SPDX-License-Identifier: Apache-2.0

/** Users' own SSH clients: a session is a token for one sandbox, with which byte streams to it can be opened. */
import * as grpc from "@grpc/grpc-js";
import { expect } from "bun:test";
import { eventually } from "../../harness.ts";
import { until } from "../../harness/base/waiting.ts";
import { codeName, outcomeOf } from "../../proto/contract.ts";
import type {
  TcpForwardFrame,
  TcpForwardFrame__Output,
} from "../../proto/v0.0/types/openshell/v1/TcpForwardFrame.ts";
import type { TcpForwardInit } from "../../proto/v0.0/types/openshell/v1/TcpForwardInit.ts";
import { type Bench, gateways, type TestSandbox } from "./given.ts";

const { scenario, ownGateway } = gateways();

const DAY_MS = 86_400_000;

const session = ({ call }: Bench, { id }: { id: string }) =>
  call((client) => client.CreateSshSession, { sandbox_id: id });

/** A Ready sandbox whose supervisor sends back what comes over a relay, and a token for it. */
async function echoing(bench: Bench) {
  const sandbox = await bench.readySandbox();
  sandbox.supervisor.relays = "echoed";
  return { sandbox, token: (await session(bench, sandbox)).token };
}

/** A byte stream to a sandbox, as a user's client opens it. */
class Stream implements Disposable {
  #received = "";
  #ended: string | undefined;
  readonly #call: grpc.ClientDuplexStream<TcpForwardFrame, TcpForwardFrame__Output>;

  constructor({ gateway }: Bench, first?: TcpForwardFrame) {
    this.#call = gateway.client.ForwardTcp({ deadline: Date.now() + 20_000 });
    this.#call.on("data", ({ data }: TcpForwardFrame__Output) => (this.#received += String(data)));
    this.#call.on("error", () => {});
    this.#call.on("status", ({ code, details }: grpc.StatusObject) => {
      this.#ended = code === grpc.status.OK ? "OK" : `${codeName(code)}: ${details}`;
    });
    if (first) this.#call.write(first);
  }

  /** Sends a text, and waits until all that was sent so far has come back. */
  async echoes(text: string): Promise<void> {
    const wanted = this.#received + text;
    this.#call.write({ data: Buffer.from(text) });
    const look = () => expect(this.#received).toBe(wanted);
    const failed = () => this.#ended && `the stream ended with ${this.#ended}`;
    await eventually(look, { what: "the echo", failed });
  }

  /** How the gateway ended it: "OK", or the code's name and the message. */
  ended = (): Promise<string> => until("the stream to end", () => this.#ended);

  end(): void {
    this.#call.end();
  }

  [Symbol.dispose](): void {
    this.#call.cancel();
  }
}

const toSsh = ({ id }: { id: string }, authorization_token: string): TcpForwardFrame => ({
  init: { sandbox_id: id, ssh: {}, authorization_token },
});

// Sessions

scenario("GA-1001 a session says how its sandbox is reached, and for how long", async (given) => {
  const sandbox = await given.readySandbox();
  const { token, expires_at_ms, ...rest } = await session(given, sandbox);
  expect(rest).toEqual({
    sandbox_id: sandbox.id,
    gateway_host: "127.0.0.1",
    gateway_port: given.gateway.port,
    gateway_scheme: "http",
    host_key_fingerprint: "",
  });
  expect(token).toMatch(/^[A-Za-z0-9._~+/=-]+$/);
  const left = Number(expires_at_ms) - Date.now();
  expect(left > DAY_MS - 60_000 && left <= DAY_MS).toBe(true);
});

scenario("GA-1002 there is no session for a sandbox that is not Ready", async (given) => {
  const sandbox = await given.create();
  expect(await outcomeOf(session(given, sandbox))).toBe("FAILED_PRECONDITION: sandbox is not ready");
});

for (const [id, what, sandboxId, refusal] of [
  ["GA-1003", "nobody", "", "INVALID_ARGUMENT: sandbox_id is required"],
  ["GA-1004", "a sandbox that is not there", "nobody", "NOT_FOUND: sandbox not found"],
] as const)
  scenario(`${id} there is no session for ${what}`, async (given) => {
    expect(await outcomeOf(session(given, { id: sandboxId }))).toBe(refusal);
  });

scenario("GA-1005 a session can be revoked, and one that is not there need not be", async (given) => {
  const revoke = async (token: string) =>
    (await given.call((client) => client.RevokeSshSession, { token })).revoked;
  const { token } = await session(given, await given.readySandbox());
  expect(await revoke(token)).toBe(true);
  expect(await revoke("nobody's")).toBe(false);
  expect(await outcomeOf(revoke(""))).toBe("INVALID_ARGUMENT: token is required");
});

// Byte streams

scenario("GA-1010 bytes go to the sandbox's SSH server and come back", async (given) => {
  const { sandbox, token } = await echoing(given);
  using stream = new Stream(given, toSsh(sandbox, token));
  await stream.echoes("one");
  await stream.echoes("x".repeat(100_000));
  const opened = sandbox.supervisor!.messages.find(({ relay_open }) => relay_open)?.relay_open;
  expect(opened).toMatchObject({ target: "ssh" });
});

scenario("GA-1011 bytes go to a port of the sandbox, for whoever asked for it", async (given) => {
  const { sandbox, token } = await echoing(given);
  const init: TcpForwardInit = {
    sandbox_id: sandbox.id,
    service_id: "who-asks",
    tcp: { host: "localhost", port: 8080 },
    authorization_token: token,
  };
  using stream = new Stream(given, { init });
  await stream.echoes("one");
  const opened = sandbox.supervisor!.messages.find(({ relay_open }) => relay_open)?.relay_open;
  expect(opened).toMatchObject({ service_id: "who-asks", tcp: { host: "127.0.0.1", port: 8080 } });
});

scenario("GA-1012 a stream is over when its client has no more to send", async (given) => {
  const { sandbox, token } = await echoing(given);
  using stream = new Stream(given, toSsh(sandbox, token));
  await stream.echoes("one");
  stream.end();
  expect(await stream.ended()).toBe("OK");
});

scenario("GA-1013 a stream is over when the supervisor is gone", async (given) => {
  const { sandbox, token } = await echoing(given);
  using stream = new Stream(given, toSsh(sandbox, token));
  await stream.echoes("one");
  sandbox.supervisor!.die();
  expect(await stream.ended()).toBe("OK");
});

scenario("GA-1014 a stream that the supervisor refuses is refused", async (given) => {
  const { sandbox, token } = await echoing(given);
  sandbox.supervisor!.relays = "refused";
  using stream = new Stream(given, toSsh(sandbox, token));
  expect(await stream.ended()).toStartWith("UNAVAILABLE");
});

// What a stream must begin with

for (const [id, what, init, refusal] of [
  ["GA-1020", "no sandbox", { ssh: {}, sandbox_id: "" }, "INVALID_ARGUMENT: sandbox_id is required"],
  ["GA-1021", "no target", {}, "INVALID_ARGUMENT: tcp forward target is required"],
  [
    "GA-1022",
    "port 0",
    { tcp: { host: "127.0.0.1", port: 0 } },
    "INVALID_ARGUMENT: tcp target port must be between 1 and 65535",
  ],
  [
    "GA-1023",
    "a port that is none",
    { tcp: { host: "127.0.0.1", port: 65_536 } },
    "INVALID_ARGUMENT: tcp target port must be between 1 and 65535",
  ],
  ["GA-1024", "no host", { tcp: { port: 80 } }, "INVALID_ARGUMENT: tcp target host is required"],
  [
    "GA-1025",
    "another machine",
    { tcp: { host: "192.0.2.1", port: 80 } },
    "INVALID_ARGUMENT: tcp target host must be loopback",
  ],
  [
    "GA-1026",
    "another machine's name",
    { tcp: { host: "example.invalid", port: 80 } },
    "INVALID_ARGUMENT: tcp target host must be loopback",
  ],
  ["GA-1027", "an unknown sandbox", { ssh: {}, sandbox_id: "nobody" }, "NOT_FOUND: sandbox not found"],
  [
    "GA-1028",
    "no token",
    { ssh: {}, authorization_token: " " },
    "UNAUTHENTICATED: authorization_token is required for ForwardTcp",
  ],
  [
    "GA-1029",
    "a token that nobody was given",
    { ssh: {}, authorization_token: "made-up" },
    "UNAUTHENTICATED: SSH session token not found",
  ],
] satisfies [string, string, TcpForwardInit, string][])
  scenario(`${id} a stream with ${what} is refused`, async (given) => {
    const { sandbox, token } = await echoing(given);
    const usual = { sandbox_id: sandbox.id, authorization_token: token };
    using stream = new Stream(given, { init: { ...usual, ...init } });
    expect(await stream.ended()).toBe(refusal);
  });

scenario("GA-1030 a stream must begin with what it is for", async (given) => {
  using bytes = new Stream(given, { data: Buffer.from("one") });
  expect(await bytes.ended()).toBe("INVALID_ARGUMENT: first TcpForwardFrame must be init");
  using nothing = new Stream(given);
  nothing.end();
  expect(await nothing.ended()).toBe("INVALID_ARGUMENT: empty ForwardTcp stream");
});

scenario("GA-1031 a token opens streams to its own sandbox alone", async (given) => {
  const { token } = await echoing(given);
  const other = await given.readySandbox();
  using stream = new Stream(given, toSsh(other, token));
  expect(await stream.ended()).toBe("UNAUTHENTICATED: SSH session token is not valid");
});

scenario("GA-1032 a token that was revoked opens no more streams", async (given) => {
  const { sandbox, token } = await echoing(given);
  using before = new Stream(given, toSsh(sandbox, token));
  await before.echoes("one");
  await given.call((client) => client.RevokeSshSession, { token });
  using stream = new Stream(given, toSsh(sandbox, token));
  expect(await stream.ended()).toBe("UNAUTHENTICATED: SSH session token is not valid");
  await before.echoes("two");
});

scenario("GA-1033 a token opens three streams at a time", async (given) => {
  const { sandbox, token } = await echoing(given);
  using streams = new DisposableStack();
  const next = () => streams.use(new Stream(given, toSsh(sandbox, token)));
  const three = [next(), next(), next()];
  for (const stream of three) await stream.echoes("one");
  expect(await next().ended()).toBe("RESOURCE_EXHAUSTED: SSH session connection limit reached");
  three[0]!.end();
  // Its place is free a moment after its end.
  await until("another to be let in", () =>
    next()
      .echoes("one")
      .then(() => true),
  );
});

ownGateway("GA-1034 a token outlives a restart of the gateway", async (given) => {
  const { sandbox, token } = await echoing(given);
  await given.restart("SIGKILL");
  await reconnected(sandbox);
  using stream = new Stream(given, toSsh(sandbox, token));
  await stream.echoes("one");
});

ownGateway("GA-1035 a token expires when the gateway is told so", async (given) => {
  const { sandbox } = await echoing(given);
  await given.restart("SIGKILL", { gateway: { ssh_session_ttl_secs: 1 } });
  await reconnected(sandbox);
  const { token, expires_at_ms } = await session(given, sandbox);
  using stream = new Stream(given, toSsh(sandbox, token));
  await stream.echoes("one");
  await until("its time to be over", () => Date.now() > Number(expires_at_ms));
  using late = new Stream(given, toSsh(sandbox, token));
  expect(await late.ended()).toBe("UNAUTHENTICATED: SSH session token expired");
});

/** Opens the session of a sandbox's supervisor again: its gateway was restarted. */
async function reconnected(sandbox: TestSandbox): Promise<void> {
  const supervisor = await sandbox.supervise();
  supervisor.relays = "echoed";
  await sandbox.reaches("READY");
}
