// SPDX-License-Identifier: Apache-2.0

/**
 * Drivers as bad as they come: `bun contract/hostile.fixture.ts KIND SOCKET`. Whatever a harness is given, it has to end
 * in time and say what it met.
 */
import * as grpc from "@grpc/grpc-js";
import { writeSync } from "node:fs";
import { createServer as createHttp2Server } from "node:http2";
import { createServer, type Socket } from "node:net";
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

/** Answers GetCapabilities, and every other call with NOT_FOUND; breaks each connection after its first call. */
function serveOnce(): void {
  const answer = computeDriver().ComputeDriver.service.GetCapabilities.responseSerialize(CAPABILITIES);
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(answer.length, 1);
  const grpcHeaders = { ":status": 200, "content-type": "application/grpc" };
  const server = createHttp2Server();
  server.on("session", (session) => {
    session.on("error", () => {});
    session.on("stream", (stream, headers) => {
      stream.on("error", () => {});
      stream.on("close", () => session.destroy());
      if (!headers[":path"]?.endsWith("/GetCapabilities"))
        return stream.respond({ ...grpcHeaders, "grpc-status": "5" }, { endStream: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.respond(grpcHeaders, { waitForTrailers: true });
      stream.end(Buffer.concat([prefix, answer]));
    });
  });
  server.listen(socket);
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
    serveDriver({ CreateSandbox: crash, GetSandbox: crash });
  },
  crashes: () => serveDriver({ CreateSandbox: crash, GetSandbox: crash }),
};

function crash(): never {
  console.error("hostile: out of luck");
  process.exit(7);
}

KINDS[kind]!();
