// SPDX-License-Identifier: Apache-2.0

/** A driver whose answers break HTTP/2, gRPC or Protocol Buffers: each fails its own call, with the reason, and no other. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { field } from "../../harness/conformance/wire.ts";
import { until } from "../../harness/base/waiting.ts";
import { computeDriver, outcomeOf, unary } from "../../proto/contract.ts";
import { ownLab } from "./given.ts";
import { type GatewayProcess, type Lab } from "./gateway-process.ts";
import { CAPABILITIES } from "./scripted-driver.ts";
import { type Answering, framed, headersOnly, opens, replies, WireDriver } from "./wire-driver.ts";

/** How long one call may take, in milliseconds. */
const ANSWER_MS = 5_000;
const EMPTY = framed(Buffer.of());

/** A driver that answers in bytes, and a gateway that dials it. */
async function dialled(lab: Lab): Promise<{ driver: WireDriver; gateway: GatewayProcess }> {
  const driver = await WireDriver.listen(lab.socketPath);
  lab.onClose(() => driver.close());
  const { responseSerialize } = computeDriver().ComputeDriver.service.GetCapabilities;
  driver.on("GetCapabilities", replies(framed(responseSerialize(CAPABILITIES))));
  return { driver, gateway: await lab.start() };
}

/** What a user who asks for a sandbox is told, for each way in which the driver answers; of an INTERNAL, why. */
async function told(lab: Lab, answers: Record<string, Answering>): Promise<Record<string, string>> {
  const { driver, gateway } = await dialled(lab);
  const { client } = gateway;
  let count = 0;
  const create = () =>
    outcomeOf(
      unary(client, client.CreateSandbox, { name: `box-${++count}`, spec: {} }, { deadlineMs: ANSWER_MS }),
    );
  const seen: Record<string, string> = {};
  for (const [name, answer] of Object.entries(answers)) {
    driver.on("CreateSandbox", answer);
    seen[name] = (await create()).replace("INTERNAL: create sandbox failed: ", "");
  }
  driver.on("CreateSandbox", replies(EMPTY));
  expect(await create()).toBe("OK");
  return seen;
}

const TOO_LARGE = (found: number) =>
  `Error, decoded message length too large: found ${found} bytes, the limit is: 4194304 bytes`;
const MISSING = "Missing response message.";

ownLab(
  "GA-1201 a message of more than 4 MiB is refused, as is a length that says so and lies",
  async (lab) => {
    const answers = {
      "5 MB": replies(framed(Buffer.alloc(5 * 2 ** 20))),
      "65 MB": replies(framed(Buffer.alloc(65 * 2 ** 20))),
      "a length of 4 GB before five bytes": replies(framed(Buffer.from("short"), { length: 0xffff_ffff })),
    };
    expect(await told(lab, answers)).toEqual({
      "5 MB": TOO_LARGE(5 * 2 ** 20),
      "65 MB": TOO_LARGE(65 * 2 ** 20),
      "a length of 4 GB before five bytes": TOO_LARGE(0xffff_ffff),
    });
  },
);

ownLab("GA-1202 a success without a whole message is none", async (lab) => {
  const answers = {
    "no message": replies(Buffer.of()),
    "half a frame's head": replies(Buffer.of(0, 0, 0)),
    "half a message": replies(framed(Buffer.from("short"), { length: 100 })),
    "headers alone": headersOnly({ "grpc-status": "0" }),
  };
  expect(await told(lab, answers)).toEqual({
    "no message": MISSING,
    "half a frame's head": MISSING,
    "half a message": MISSING,
    "headers alone": MISSING,
  });
});

ownLab("GA-1203 an answer without a gRPC status says of HTTP what it was", async (lab) => {
  const answers = {
    "HTTP 404": headersOnly({ ":status": 404 }),
    "HTTP 503": headersOnly({ ":status": 503 }),
    "a page": headersOnly({ "content-type": "text/html" }),
    "a reset stream": (stream) => stream.close(2),
    "a refused stream": (stream) => stream.close(7),
    "a broken connection": ({ session }) => session!.destroy(),
  } satisfies Record<string, Answering>;
  const mapped = "grpc-status header missing, mapped from HTTP status code";
  expect(await told(lab, answers)).toEqual({
    "HTTP 404": `${mapped} 404`,
    "HTTP 503": `${mapped} 503`,
    "a page":
      "protocol error: missing grpc-status trailer, stream was terminated without a final status (possible truncation by a proxy or load balancer)",
    "a reset stream": "h2 protocol error: http2 error",
    "a refused stream": "h2 protocol error: http2 error",
    "a broken connection": "h2 protocol error: http2 error",
  });
});

ownLab(
  "GA-1204 a status that gRPC does not have is a failure, and one after a message counts",
  async (lab) => {
    const answers = {
      "99": replies(EMPTY, { "grpc-status": 99 }),
      abc: replies(EMPTY, { "grpc-status": "abc" }),
      "-1": replies(EMPTY, { "grpc-status": -1 }),
      "FAILED_PRECONDITION, after a message": replies(EMPTY, { "grpc-status": status.FAILED_PRECONDITION }),
    };
    expect(await told(lab, answers)).toEqual({
      "99": "",
      abc: "",
      "-1": "",
      "FAILED_PRECONDITION, after a message": "FAILED_PRECONDITION: ",
    });
  },
);

ownLab(
  "GA-1205 a watch that begins with what is too large is opened again, and what it then tells counts",
  async (lab) => {
    const { driver, gateway } = await dialled(lab);
    const { client } = gateway;
    const call = { deadlineMs: ANSWER_MS };
    const { sandbox } = await unary(client, client.CreateSandbox, { name: "box", spec: {} }, call);
    const { id } = sandbox!.metadata!;
    const watches = () => driver.calls.filter((method) => method === "WatchSandboxes").length;
    const before = watches();
    driver.on("WatchSandboxes", opens(framed(Buffer.from("short"), { length: 0xffff_ffff })));
    driver.hangUp();
    await until("a watch after the one that was hung up", () => watches() > before);
    driver.on("WatchSandboxes", opens(framed(field(2, field(1, id)))));
    const look = () => outcomeOf(unary(client, client.GetSandbox, { name: "box" }, call));
    await until("the sandbox to be gone", async () => (await look()) === "NOT_FOUND: sandbox not found");
    expect(gateway.log).toContain(TOO_LARGE(0xffff_ffff));
  },
);

ownLab("GA-1206 the log tells a watch that was refused from one that broke, and says why", async (lab) => {
  const { driver, gateway } = await dialled(lab);
  const logs = (what: string) => {
    // Even into a file the real one writes in colours.
    // oxlint-disable-next-line no-control-regex
    const plain = () => gateway.log.replace(/\x1b\[\d+m/g, "");
    return until(`the line ${what}`, () => plain().includes(`Compute driver watch stream ${what}`));
  };
  driver.on("WatchSandboxes", headersOnly({ "grpc-status": status.UNIMPLEMENTED }));
  driver.hangUp();
  await logs("failed to start error=code: 'Operation is not implemented or not supported'");
  driver.on("WatchSandboxes", replies(EMPTY, { "grpc-status": status.ABORTED, "grpc-message": "so" }));
  await logs(`errored error=code: 'The operation was aborted', message: "so"`);
});

ownLab("GA-1207 what is no message is refused, and so is one that came compressed unasked", async (lab) => {
  const answers = {
    "a text": replies(framed(Buffer.from("no message"))),
    "a field that ends too early": replies(framed(Buffer.of(0x7a, 9, 1))),
    compressed: replies(framed(Buffer.of(1, 2, 3), { flag: 1 })),
  };
  expect(await told(lab, answers)).toEqual({
    "a text": "failed to decode Protobuf message: invalid wire type value: 6",
    "a field that ends too early": "failed to decode Protobuf message: buffer underflow",
    compressed: "protocol error: received message with compressed-flag but no grpc-encoding was specified",
  });
});

ownLab(
  "GA-1208 a sandbox's name that is not UTF-8 ends the watch, and the log names the field",
  async (lab) => {
    const { driver, gateway } = await dialled(lab);
    const named = field(1, field(1, field(2, Buffer.of(0x62, 0xff))));
    driver.on("WatchSandboxes", opens(framed(named)));
    driver.hangUp();
    const where = "DriverSandbox.name: WatchSandboxesSandboxEvent.sandbox: WatchSandboxesEvent.payload";
    const why = "invalid string value: data is not UTF-8 encoded";
    await until("that line", () =>
      gateway.log.includes(`"failed to decode Protobuf message: ${where}: ${why}"`),
    );
  },
);
