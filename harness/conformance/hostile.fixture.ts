// SPDX-License-Identifier: Apache-2.0

/**
 * Drivers as bad as they come: `bun contract/hostile.fixture.ts KIND SOCKET`. Whatever a harness is given, it has to end
 * in time and say what it met.
 */
import * as grpc from "@grpc/grpc-js";
import { rmSync, symlinkSync, writeFileSync, writeSync } from "node:fs";
import { createServer as createHttp2Server } from "node:http2";
import { createServer, type Socket } from "node:net";
import { dirname } from "node:path";
import { computeDriver, openshell } from "../../proto/contract.ts";
import type { ComputeDriverHandlers } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { GetCapabilitiesResponse } from "../../proto/v0.0/types/openshell/compute/v1/GetCapabilitiesResponse.ts";

const [kind = "", socket = ""] = process.argv.slice(2);

const CAPABILITIES: GetCapabilitiesResponse = { driver_name: "hostile", driver_version: kind };
const snapshot = (message = ""): DriverSandbox => ({
  id: crypto.randomUUID(),
  name: "nobody",
  status: { conditions: [{ type: "Ready", status: "True", reason: "Fine", message }] },
});
const BIG = snapshot("x".repeat(5 * 1024 * 1024));

/** Listens, and does this with every connection. */
function listen(onConnection: (connection: Socket) => void): void {
  createServer((connection) => {
    connection.on("error", () => {});
    onConnection(connection);
  }).listen(socket);
}

/** Serves what is given; every other call is UNIMPLEMENTED. */
function serve(service: grpc.ServiceDefinition, handlers: grpc.UntypedServiceImplementation): void {
  const server = new grpc.Server({ "grpc.max_send_message_length": -1 });
  server.addService(service, handlers);
  server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), () => {});
}

const serveDriver = (handlers: Partial<ComputeDriverHandlers>) =>
  serve(computeDriver().ComputeDriver.service, {
    ...handlers,
    GetCapabilities: (_: unknown, reply: grpc.sendUnaryData<GetCapabilitiesResponse>) =>
      reply(null, CAPABILITIES),
  } as grpc.UntypedServiceImplementation);

const GRPC = { ":status": 200, "content-type": "application/grpc" };

/** A message as it goes over the wire: a flag, four bytes of length, and the bytes. */
function framed(message: Uint8Array, { flag = 0, length = message.length } = {}): Buffer {
  const prefix = Buffer.alloc(5);
  prefix[0] = flag;
  prefix.writeUInt32BE(length, 1);
  return Buffer.concat([prefix, message]);
}

const capabilities = () =>
  framed(computeDriver().ComputeDriver.service.GetCapabilities.responseSerialize(CAPABILITIES));

/**
 * Serves plain HTTP/2: answers ListSandboxes and a watch with these bytes, GetCapabilities, creates and deletes as it
 * should, and every other call with UNIMPLEMENTED.
 */
function serveBytes({ list = framed(Buffer.of()), watch }: { list?: Buffer; watch?: Buffer }): void {
  const answers: Record<string, Buffer | undefined> = {
    GetCapabilities: capabilities(),
    ListSandboxes: list,
    WatchSandboxes: watch,
    CreateSandbox: framed(Buffer.of()),
    // It was there.
    DeleteSandbox: framed(Buffer.of(0x08, 0x01)),
  };
  // Or what one stream has not taken would be held against the others.
  const server = createHttp2Server({ maxSessionMemory: 1_000 });
  server.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    const name = String(headers[":path"]).split("/").at(-1)!;
    const answer = answers[name];
    if (!answer) return stream.respond({ ...GRPC, "grpc-status": "12" }, { endStream: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.respond(GRPC, { waitForTrailers: true });
    // A watch goes on.
    if (name === "WatchSandboxes") stream.write(answer);
    else stream.end(answer);
  });
  server.listen(socket);
}

/** What is no message, by name: each a frame, or what is left of one. */
const WORDLESS: Record<string, () => Buffer> = {
  "no-protobuf": () => framed(Buffer.from("no message at all")),
  truncated: () => framed(eventBytes().subarray(0, -3)),
  "wrong-wire-type": () => framed(Buffer.of(0x08, 0x01)),
  "not-utf-8": () => framed(Buffer.from(eventBytes().map((byte) => (byte === 0x78 ? 0xff : byte)))),
  "length-that-lies": () => framed(Buffer.from("short"), { length: 0xffff_ffff }),
  compressed: () => framed(eventBytes(), { flag: 1 }),
  "65-mb": () => framed(Buffer.alloc(65 * 2 ** 20)),
};

/** A snapshot's event, with a few `x` in it. */
const eventBytes = () =>
  computeDriver().ComputeDriver.service.WatchSandboxes.responseSerialize({
    sandbox: { sandbox: snapshot("xxx") },
  });

/** Answers GetCapabilities, and every other call with NOT_FOUND; breaks each connection after its first call. */
function serveOnce(): void {
  const server = createHttp2Server();
  server.on("session", (session) => {
    session.on("error", () => {});
    session.on("stream", (stream, headers) => {
      stream.on("error", () => {});
      stream.on("close", () => session.destroy());
      if (!headers[":path"]?.endsWith("/GetCapabilities"))
        return stream.respond({ ...GRPC, "grpc-status": "5" }, { endStream: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.respond(GRPC, { waitForTrailers: true });
      stream.end(capabilities());
    });
  });
  server.listen(socket);
}

/** An HTTP/2 frame. */
function http2Frame(type: number, stream: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

const NO_SETTINGS = http2Frame(4, 0, Buffer.of());
/** MAX_CONCURRENT_STREAMS = 0. */
const NO_STREAMS = http2Frame(4, 0, Buffer.of(0, 3, 0, 0, 0, 0));
const GOAWAY = http2Frame(7, 0, Buffer.alloc(8));

/** A good driver that has no sandboxes, until `evil` is done to its socket, when it was asked twice what it can do. */
function serveUntil(evil: () => void): void {
  let asked = 0;
  serve(computeDriver().ComputeDriver.service, {
    GetCapabilities: (_: unknown, reply: grpc.sendUnaryData<GetCapabilitiesResponse>) => {
      // The keeper asks first, whether it is up; then the check, or the gateway.
      if (++asked === 2) evil();
      reply(null, CAPABILITIES);
    },
    ListSandboxes: (_: unknown, reply: grpc.sendUnaryData<object>) => reply(null, { sandboxes: [] }),
    WatchSandboxes: () => {},
  } as grpc.UntypedServiceImplementation);
}

const KINDS: Record<string, () => void> = {
  "never-binds": () => setInterval(() => {}, 60_000),
  "ends-at-once": () => {
    console.error("hostile: no such luck");
    process.exit(7);
  },
  // A line of half a megabyte, in which much looks like something.
  "ends-with-a-long-line": () => {
    writeSync(2, `${"deadbeef".repeat(65_536)}\nhostile: out of words\n`);
    process.exit(7);
  },
  "never-answers": () => listen(() => {}),
  garbage: () => listen((connection) => connection.end(crypto.getRandomValues(Buffer.alloc(4_096)))),
  "http-1": () =>
    listen((connection) => connection.end("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
  tls: () => listen((connection) => connection.write(Buffer.of(0x15, 3, 3, 0, 2, 2, 40))),
  "ssh-banner": () => listen((connection) => connection.write("SSH-2.0-OpenSSH_9.9\r\n")),
  "closes-after-settings": () => listen((connection) => connection.end(NO_SETTINGS)),
  "goaway-at-once": () => listen((connection) => connection.write(Buffer.concat([NO_SETTINGS, GOAWAY]))),
  "no-streams": () => listen((connection) => connection.write(NO_STREAMS)),
  "never-reads": () => listen((connection) => connection.pause().write(NO_SETTINGS)),
  "resets-each-stream": () =>
    createHttp2Server()
      .on("stream", (stream) => stream.on("error", () => {}).close(2))
      .listen(socket),
  "trailers-only": () =>
    createHttp2Server()
      .on("stream", (stream) => stream.respond({ ...GRPC, "grpc-status": "0" }, { endStream: true }))
      .listen(socket),
  "floods-headers": () =>
    createHttp2Server()
      .on("stream", (stream) => {
        const many = Array.from({ length: 10_000 }, (_, number) => [`x-${number}`, "and so on"]);
        stream.on("error", () => {});
        stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
        stream.respond({ ...GRPC, ...Object.fromEntries(many) }, { waitForTrailers: true });
        stream.end(capabilities());
      })
      .listen(socket),
  daemonizes: () => {
    Bun.spawn([process.execPath, import.meta.path, "watch-truncated", socket], {
      detached: true,
      stdio: ["ignore", "ignore", "ignore"],
    }).unref();
    process.exit(0);
  },
  "removes-its-socket": () => serveUntil(() => rmSync(socket)),
  "becomes-a-file": () =>
    serveUntil(() => {
      rmSync(socket);
      writeFileSync(socket, "hostile");
    }),
  "becomes-a-link": () =>
    serveUntil(() => {
      rmSync(socket);
      symlinkSync("/etc/passwd", socket);
    }),
  "becomes-another-server": () =>
    serveUntil(() => {
      rmSync(socket);
      listen((connection) => connection.end("SSH-2.0-OpenSSH_9.9\r\n"));
    }),
  "deletes-the-run": () => serveUntil(() => rmSync(dirname(dirname(dirname(socket))), { recursive: true })),
  "other-service": () => serve(openshell().OpenShell.service, {}),
  "closes-after-each-call": serveOnce,
  "answers-no-call": () => {
    const silent = Object.keys(computeDriver().ComputeDriver.service).map((name) => [name, () => {}]);
    serveDriver(Object.fromEntries(silent));
  },
  floods: () =>
    serveDriver({
      ListSandboxes: (_, reply) => reply(null, { sandboxes: [] }),
      WatchSandboxes: (call) => {
        for (let event = 0; event < 10_000; event++) call.write({ sandbox: { sandbox: snapshot() } });
      },
    }),
  big: () =>
    serveDriver({
      ListSandboxes: (_, reply) => reply(null, { sandboxes: [BIG] }),
      WatchSandboxes: (call) => void call.write({ sandbox: { sandbox: BIG } }),
    }),
  "never-up": () =>
    serveDriver({
      CreateSandbox: (_, reply) => reply(null, {}),
      GetSandbox: ({ request: { sandbox_id, sandbox_name } }, reply) => {
        const refused = { type: "Ready", status: "False", reason: "Unschedulable" };
        const status = { sandbox_name, conditions: [refused] };
        reply(null, { sandbox: { id: sandbox_id, name: sandbox_name, status } });
      },
      DeleteSandbox: (_, reply) => reply(null, { deleted: true }),
    }),
  // As much as nobody wants to keep.
  "floods-its-log": () => {
    const lines = Buffer.from(
      "hostile: and so on and so on and so on and so on and so on and so on\n".repeat(10_000),
    );
    for (let written = 0; written < 300e6;) written += writeSync(2, lines);
    // What was written last may have been cut off in a line.
    writeSync(2, "\n");
    serveDriver({ CreateSandbox: crash, GetSandbox: crash });
  },
  crashes: () => serveDriver({ CreateSandbox: crash, GetSandbox: crash }),
};

function crash(): never {
  console.error("hostile: out of luck");
  process.exit(7);
}

const [where, wordless] = [kind.slice(0, kind.indexOf("-")), kind.slice(kind.indexOf("-") + 1)];
if (WORDLESS[wordless] && where === "watch") serveBytes({ watch: WORDLESS[wordless]() });
else if (WORDLESS[wordless] && where === "list") serveBytes({ list: WORDLESS[wordless]() });
else KINDS[kind]!();
