// SPDX-License-Identifier: Apache-2.0

/** A gateway that starts: how it finds its driver, what it asks it first, and what ends the start. */
import { linkSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { register } from "../../harness/scenario.ts";
import { until } from "../../harness/base/waiting.ts";
import { aboutCaller, recorded } from "../../harness/report/scenario.ts";
import { fail, gateways, ownLab } from "./given.ts";
import { isReal, Lab, type Outcome } from "./gateway-process.ts";

const { scenario, ownGateway } = gateways();

const RUNTIME = "execution error: failed to create compute runtime: ";

// What the driver is asked

ownGateway(
  "GA-101 a gateway asks what its driver is, then where to listen, then watches and lists",
  async (given) => {
    await until("the list", () => given.driver.called("ListSandboxes")[0]);
    const methods = given.driver.calls.map(({ method }) => method);
    expect(methods.slice(0, 2)).toEqual(["GetCapabilities", "GetGatewayListenerRequirements"]);
    expect(methods.slice(2).toSorted()).toEqual(["ListSandboxes", "WatchSandboxes"]);
  },
  {},
);

scenario("GA-102 the log names the driver by its configured and by its own name", async ({ gateway }) => {
  expect(gateway.log).toContain(
    "Compute driver connected configured_driver=external-test advertised_driver=scripted in_tree=false",
  );
});

scenario(
  "GA-103 users see the driver by its configured name, with what it says of itself",
  async ({ call }) => {
    expect((await call((client) => client.GetGatewayInfo, {})).compute_drivers).toEqual([
      { name: "external-test", capabilities: { driver_name: "scripted", driver_version: "1.2.3" } },
    ]);
  },
);

ownGateway(
  "GA-104 a driver need have neither name nor version nor default image",
  async ({ call, create }) => {
    expect((await call((client) => client.GetGatewayInfo, {})).compute_drivers).toEqual([
      { name: "external-test", capabilities: { driver_name: "", driver_version: "" } },
    ]);
    expect((await create()).created.spec!.template!.image).toBe("");
  },
  { GetCapabilities: () => ({}) },
);

scenario("GA-105 health is answered on a port of its own", async ({ gateway }) => {
  expect(await gateway.health("/healthz")).toBe(200);
  await until("/readyz", async () => (await gateway.health("/readyz")) === 200);
  expect(await gateway.health("/health")).toBe(200);
  expect(await gateway.health("/other")).toBe(404);
});

// A driver that answers with an error

for (const [id, code] of [
  ["GA-106", status.INTERNAL],
  ["GA-107", status.UNIMPLEMENTED],
  ["GA-108", status.UNAVAILABLE],
] as const) {
  ownLab(
    `${id} ${status[code]} of GetCapabilities ends the start with exit code 1, asked once`,
    async (lab) => {
      const driver = await lab.listen({ GetCapabilities: fail(code, "who knows") });
      expect(await lab.giveUp()).toMatchObject({ exitCode: 1, message: `${RUNTIME}who knows` });
      expect(driver.calls.map(({ method }) => method)).toEqual(["GetCapabilities"]);
    },
  );
}

ownLab("GA-109 a driver that cannot list keeps no gateway from starting", async (lab) => {
  const driver = await lab.listen({ ListSandboxes: fail(status.INTERNAL, "not now") });
  await lab.start();
  await until("the list", () => driver.called("ListSandboxes")[0]);
});

ownLab("GA-110 a driver that cannot watch keeps no gateway from starting", async (lab) => {
  const driver = await lab.listen({ WatchSandboxes: fail(status.UNIMPLEMENTED, "never heard of it") });
  await lab.start();
  await until("the watch", () => driver.called("WatchSandboxes")[0]);
});

// A driver that takes its time

ownLab(
  "GA-111 a driver that does not answer GetCapabilities holds the start: nothing is served until it does",
  async (lab) => {
    const driver = await lab.listen();
    const release = driver.hang("GetCapabilities");
    const gateway = await lab.launch();
    await until("the call to reach the driver", () => driver.called("GetCapabilities")[0]);
    expect(await gateway.health("/healthz").catch(() => "refused")).toBe("refused");
    expect(gateway.ended).toBeUndefined();
    release();
    await gateway.answering();
  },
);

ownLab("GA-112 a gateway that waits for GetCapabilities still ends with SIGTERM", async (lab) => {
  const driver = await lab.listen();
  driver.hang("GetCapabilities");
  const gateway = await lab.launch();
  await until("the call to reach the driver", () => driver.called("GetCapabilities")[0]);
  expect(await gateway.stop()).toBe("signal SIGTERM");
});

ownLab("GA-113 a driver that comes late is waited for", async (lab) => {
  const gateway = await lab.launch();
  await until("the gateway to wait", () => gateway.log.includes("Using compute driver"));
  await lab.listen();
  await gateway.answering();
});

ownLab("GA-114 a driver that puts its socket where a plain file was is waited for", async (lab) => {
  writeFileSync(lab.socketPath, "");
  const gateway = await lab.launch();
  await until("the gateway to wait", () => gateway.log.includes("Using compute driver"));
  rmSync(lab.socketPath);
  await lab.listen();
  await gateway.answering();
});

ownLab("GA-115 a socket to which a link leads is as good as any", async (lab) => {
  await lab.listen({}, lab.path("real.sock"));
  symlinkSync(lab.path("real.sock"), lab.socketPath);
  await lab.start();
});

ownLab(
  "GA-116 a driver that is there for the connection, and gone for the first call, ends the start",
  async (lab) => {
    await hangingUp(lab);
    const { exitCode, message } = await lab.giveUp();
    expect(exitCode).toBe(1);
    expect(message).toStartWith(RUNTIME);
  },
);

// A driver that never comes

/** What waits for nothing where a driver should be; all at once, since a real gateway waits for 30 s. */
const waits: Record<string, { lab: Lab; ended: Promise<Outcome> }> = {};
const SECONDS = isReal ? 30 : 1;

beforeAll(async () => {
  const begin = async (what: string, prepare: (lab: Lab) => unknown) => {
    const lab = await Lab.open();
    await prepare(lab);
    // The fake can wait for less; the real one has no such setting.
    waits[what] = { lab, ended: lab.giveUp({ env: { OPENSHELL_FAKE_DIAL_SECONDS: String(SECONDS) } }) };
  };
  await begin("nothing", () => {});
  await begin("a plain file", (lab) => writeFileSync(lab.socketPath, ""));
  await begin("a dead socket", deadSocket);
}, 60_000);
afterAll(async () => {
  for (const { lab } of Object.values(waits)) await lab.close();
});

for (const [id, what] of [
  ["GA-117", "nothing"],
  ["GA-118", "a plain file"],
  ["GA-119", "a dead socket"],
] as const) {
  const title = `${id} a gateway that finds ${what} where its driver should be gives up after 30 s, with exit code 1`;
  const about = aboutCaller(title, "");
  const prove = async () => {
    const { lab, ended } = waits[what]!;
    const { exitCode, message } = await ended;
    expect(message).toBe(
      `${RUNTIME}failed to connect to remote compute driver socket '${lab.socketPath}' within ${SECONDS}s: transport error`,
    );
    expect(exitCode).toBe(1);
  };
  // No turn: all three wait for the same 30 s, and do nothing else.
  register(title, () => test.concurrent(title, () => recorded(about, prove), 90_000));
}

/** A socket file whose server is gone. */
async function deadSocket({ socketPath }: Lab): Promise<void> {
  const server = await listening(`${socketPath}.first`, () => {});
  linkSync(`${socketPath}.first`, `${socketPath}.kept`);
  await new Promise((done) => server.close(done));
  renameSync(`${socketPath}.kept`, socketPath);
}

/** Somebody who accepts every connection, and hangs up. */
async function hangingUp(lab: Lab): Promise<void> {
  const server = await listening(lab.socketPath, (socket) => socket.destroy());
  lab.onClose(() => server.close());
}

function listening(path: string, onConnection: (socket: import("node:net").Socket) => void): Promise<Server> {
  return new Promise((done, failed) => {
    const server = createServer(onConnection).once("error", failed);
    server.listen(path, () => done(server));
  });
}
