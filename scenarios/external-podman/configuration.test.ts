// SPDX-License-Identifier: Apache-2.0

/** How a gateway is told of an external driver, and what it then says to it. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { DRIVER_NAME, eventually, HarnessError, refusal, RunningStack, scenario } from "../../harness.ts";
import type { Given, SandboxOptions } from "../../harness.ts";
import type { StackSpec } from "../../keeper/stack.ts";
import type { DriverSandbox__Output } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { ancestry, listenersOn, struct, withoutPodmanDriver, withoutProc } from "./given.ts";

// A driver by name

scenario("CF-01 the gateway reports its driver under the configured name", async ({ stack, gateway }) => {
  const { responses } = await firstCall(stack, "GetCapabilities");
  const { driver_name, driver_version } = responses[0] as Record<string, string>;
  const drivers = await gateway.drivers();
  expect(drivers).toMatchObject([{ name: DRIVER_NAME, capabilities: { driver_name, driver_version } }]);
});

scenario("CF-02 the gateway's log says that the driver is not in its own process", async ({ stack }) => {
  const [connected] = stack.log("gateway").match(/^.*Compute driver connected.*$/m) ?? [];
  expect(connected).toContain(`configured_driver=${DRIVER_NAME}`);
  expect(connected).toMatch(/advertised_driver=\S+/);
  // The gateway tells it by the name alone: of a reserved name it says true, even over a socket.
  expect(connected).toContain("in_tree=false");
});

scenario("CF-03 gateway, driver, keeper and test are four processes", async ({ stack }) => {
  const { gateway, driver, keeper } = stack.info.pids;
  expect(new Set([gateway, driver, keeper, process.pid]).size).toBe(4);
  for (const pid of [gateway, driver, keeper]) expect(() => process.kill(pid, 0)).not.toThrow();
});

scenario(
  "CF-04 the driver's process, and no other, listens on the driver's socket",
  async ({ stack }) => {
    const listeners = await eventually(() => listenersOn(stack.info.driverSocket), { what: "read /proc" });
    // A driver may have been started by a script.
    for (const pid of listeners) expect(ancestry(pid)).toContain(stack.info.pids.driver);
  },
  { skip: withoutProc },
);

// Configurations that a gateway refuses

type Refusal = [title: string, spec: StackSpec, says: RegExp];

const REFUSED_AT_ONCE: Refusal[] = [
  [
    "CF-05 a driver's table without socket_path is refused",
    { table: {} },
    /remote compute driver 'external-podman' requires socket_path/,
  ],
  [
    "CF-06 a driver's table whose name is not in lower case is not found",
    { driverName: "External_Podman", tableName: "External_Podman" },
    /remote compute driver 'external_podman' requires socket_path/,
  ],
  [
    "CF-07 a driver's name has no dots",
    { driverName: "ext.podman" },
    /invalid compute driver name 'ext\.podman'\. use ASCII letters, digits, '-' or '_'/,
  ],
  ["CF-08 a driver's name is not empty", { driverName: " " }, /compute driver name cannot be empty/],
  [
    "CF-09 a gateway has one driver",
    { gatewayTable: { compute_drivers: [DRIVER_NAME, "another"] } },
    /multiple compute drivers are not supported yet; configured drivers: external-podman,another/,
  ],
  [
    "CF-10 a key that the gateway does not know is refused by name",
    { gatewayTable: { compute_driver: DRIVER_NAME } },
    /unknown field `compute_driver`/,
  ],
  [
    "CF-11 OPENSHELL_COMPUTE_DRIVER_SOCKET, a driver's variable too, stops a gateway that is not told --drivers",
    { gatewayEnv: { OPENSHELL_COMPUTE_DRIVER_SOCKET: "{socket}" } },
    /--compute-driver-socket requires --drivers/,
  ],
];

/** A fake gateway is told to be less patient; the real one knows no such variable. */
const PATIENCE = { deadlineMs: 40_000, gatewayEnv: { OPENSHELL_FAKE_DIAL_SECONDS: "0.5" } };

const GIVEN_UP: Refusal[] = [
  [
    "CF-27 a gateway whose driver never comes gives up after 30 s and names the socket",
    { ...PATIENCE, table: { socket_path: "/no/driver.sock" } },
    /failed to connect to remote compute driver socket '\/no\/ ?driver\.sock' within (30|0\.5)s/,
  ],
  [
    "CF-28 a plain file where the driver's socket should be is as good as none",
    { ...PATIENCE, table: { socket_path: import.meta.path } },
    /failed to connect to remote compute driver socket '.*configuration\.test\.ts' within (30|0\.5)s/,
  ],
];

const itEnds = ([title, , says]: Refusal): void =>
  scenario(title, async ({ startStack }) => {
    const outcome = await refused(startStack).get(title);
    expect(outcome).toMatch(says);
    expect(outcome).toContain("exit code 1");
  });

let outcomes: Map<string, Promise<string>> | undefined;

/** How those gateways end. All are started when the first is asked for: the real one takes 30 s to give up. */
function refused(startStack: Given["startStack"]): Map<string, Promise<string>> {
  return (outcomes ??= new Map(
    [...REFUSED_AT_ONCE, ...GIVEN_UP].map(([title, spec]) => [
      title,
      startStack({ order: "gateway-only", ...spec }).then(
        () => "It started",
        (error: Error) => error.message,
      ),
    ]),
  ));
}

REFUSED_AT_ONCE.forEach(itEnds);

// What crosses the socket

scenario("CF-12 a life crosses the socket as one call a step, in order", async ({ startStack }) => {
  const stack = await startStack();
  await wholeLife(stack);
  const calls = (await stack.calls()).map(({ method }) => method);
  expect(calls.slice(0, 2)).toEqual(["GetCapabilities", "GetGatewayListenerRequirements"]);
  // Watching and reconciling go on beside it.
  const steps = calls.slice(2).filter((method) => !/^(Watch|List|Get)Sandbox/.test(method));
  const life = ["ValidateSandboxCreate", "CreateSandbox", "StopSandbox", "StartSandbox", "DeleteSandbox"];
  expect(steps).toEqual(life);
  expect(calls).toContain("WatchSandboxes");
});

scenario("CF-13 the same life works with nothing between gateway and driver", async ({ startStack }) => {
  const stack = await startStack({ tap: false });
  expect(stack.info.gatewaySocket).toBe(stack.info.driverSocket);
  await wholeLife(stack);
});

async function wholeLife({ gateway }: RunningStack): Promise<void> {
  const sandbox = await gateway.readySandbox();
  expect(await sandbox.exec(["echo", "alive"])).toMatchObject({ stdout: "alive\n", exitCode: 0 });
  await sandbox.stop();
  await sandbox.start();
  await sandbox.ready();
  await sandbox.delete();
}

scenario(
  "CF-14 the driver is given the id, name and workspace that users see",
  async ({ stack, gateway }) => {
    const since = await stack.lastCall();
    const sandbox = await gateway.readySandbox();
    const { id, name, workspace } = sandbox;
    await sandbox.delete();
    const told = { sandbox: { id, name, workspace } };
    expect((await firstCall(stack, "ValidateSandboxCreate", since)).request).toMatchObject(told);
    expect((await firstCall(stack, "CreateSandbox", since)).request).toMatchObject(told);
    const { request } = await firstCall(stack, "DeleteSandbox", since);
    expect(request).toEqual({ sandbox_id: id, sandbox_name: name });
  },
);

scenario("CF-15 a sandbox's token crosses in CreateSandbox alone, and no record shows it", async (given) => {
  const { validated, created } = await askedOfDriver(given, {});
  expect(validated.spec).not.toHaveProperty("sandbox_token");
  expect(created.spec).toHaveProperty("sandbox_token", "<redacted>");
});

scenario("CF-16 a template's labels reach the driver, a sandbox's own do not", async (given) => {
  const template = { labels: { its: "driver" } };
  const { created } = await askedOfDriver(given, { labels: { mine: "user" }, template });
  expect(created.spec?.template?.labels).toEqual({ its: "driver" });
});

/** What ValidateSandboxCreate and CreateSandbox carry; the latter is refused at the tap, so that nothing has to run. */
async function askedOfDriver({ stack, gateway }: Given, options: SandboxOptions) {
  const since = await stack.lastCall();
  const fail = { code: status.FAILED_PRECONDITION, message: "seen enough" };
  await stack.rules({ method: "CreateSandbox", times: 1, fail });
  expect((await refusal(gateway.createSandbox(options))).message).toContain("seen enough");
  const sandboxIn = async (method: string) =>
    ((await firstCall(stack, method, since)).request as { sandbox: DriverSandbox__Output }).sandbox;
  return {
    validated: await sandboxIn("ValidateSandboxCreate"),
    created: await sandboxIn("CreateSandbox"),
  };
}

/** The first call of that method after call number `since`. */
async function firstCall(stack: RunningStack, method: string, since = 0) {
  const call = (await stack.calls(since)).find((each) => each.method === method);
  if (!call) throw new HarnessError(`No ${method} crossed the tap`);
  return call;
}

// driver_config

scenario("CF-17 of driver_config, the configured name's block alone reaches the driver", async (given) => {
  const driver_config = struct({ [DRIVER_NAME]: {}, podman: { no_such_field: true } });
  const { created } = await askedOfDriver(given, { template: { driver_config } });
  expect(created.spec?.template).toHaveProperty("driver_config", { fields: {} });
});

scenario(
  "CF-18 what the driver finds wrong with its driver_config is what the user is told",
  async ({ stack, gateway }) => {
    const since = await stack.lastCall();
    const driver_config = struct({ [DRIVER_NAME]: { no_such_field: true } });
    const { code, message } = await refusal(gateway.createSandbox({ template: { driver_config } }));
    expect(code).toBe("INVALID_ARGUMENT");
    expect(message).toContain("no_such_field");
    expect((await firstCall(stack, "ValidateSandboxCreate", since)).details).toBe(message);
  },
  { skip: withoutPodmanDriver },
);

scenario("CF-19 a driver_config block must be a table", async ({ gateway }) => {
  const driver_config = struct({ [DRIVER_NAME]: "text" });
  expect(await refusal(gateway.createSandbox({ template: { driver_config } }))).toEqual({
    code: "INVALID_ARGUMENT",
    message: `template.driver_config.${DRIVER_NAME} must be an object`,
  });
});

// Names and sockets that work

scenario(
  "CF-20 the configured name is put in lower case, for which its table is looked up",
  async (given) => {
    const stack = await given.startStack({ driverName: "External_Podman", tableName: "external_podman" });
    expect((await stack.gateway.drivers()).map(({ name }) => name)).toEqual(["external_podman"]);
  },
);

scenario("CF-21 --drivers and --compute-driver-socket win over the config file", async ({ startStack }) => {
  const stack = await startStack({
    table: { socket_path: "/nonexistent/driver.sock" },
    gatewayArgs: ["--drivers", "from-flags", "--compute-driver-socket", "{socket}"],
  });
  expect((await stack.gateway.drivers()).map(({ name }) => name)).toEqual(["from-flags"]);
  expect((await firstCall(stack, "GetCapabilities")).status).toBe("OK");
});

scenario("CF-22 with --compute-driver-socket even a reserved name is the external driver", async (given) => {
  const gatewayArgs = ["--drivers", "podman", "--compute-driver-socket", "{socket}"];
  const stack = await given.startStack({ driverName: "podman", table: {}, gatewayArgs });
  expect((await firstCall(stack, "GetCapabilities")).status).toBe("OK");
});

scenario("CF-23 without it, a reserved name never passes for the external driver", async ({ startStack }) => {
  const outcome = await startStack({ driverName: "podman" }).catch((error: Error) => error);
  if (outcome instanceof RunningStack) {
    // A gateway that was built without drivers of its own reserves no names.
    expect((await firstCall(outcome, "GetCapabilities")).status).toBe("OK");
  } else {
    // Its own driver took our socket for Podman's.
    expect(outcome.message).toMatch(/failed to create compute runtime|in-tree compute driver/);
  }
});

scenario("CF-24 with no name in compute_drivers, a driver's table alone chooses nothing", async (given) => {
  const spec: StackSpec = { order: "gateway-only", gatewayTable: { compute_drivers: [] } };
  const outcome = await given.startStack(spec).then(
    async ({ gateway }) => `started with ${(await gateway.drivers())[0]?.name}`,
    (error: Error) => error.message,
  );
  // A gateway with drivers of its own takes one whose engine it finds on this machine.
  expect(outcome).toMatch(/auto-detection found no|failed to create compute runtime|started with (?!ext)/);
});

scenario("CF-25 the driver may be started after the gateway", async ({ startStack }) => {
  const stack = await startStack({ order: "gateway-first" });
  const drivers = await stack.gateway.drivers();
  expect(drivers.map(({ name }) => name)).toEqual([DRIVER_NAME]);
});

scenario("CF-26 two gateways on one engine do not see each other's sandboxes", async (given) => {
  const other = await given.startStack();
  const [ours, theirs] = await Promise.all([given.gateway.readySandbox(), other.gateway.readySandbox()]);
  expect(await given.gateway.listSandboxes()).toContain(ours.name);
  expect(await given.gateway.listSandboxes()).not.toContain(theirs.name);
  expect(await other.gateway.listSandboxes()).toEqual([theirs.name]);
  await theirs.delete();
  expect((await ours.refresh()).phase).toBe("READY");
});

// Last, for by now they have been trying for a while

GIVEN_UP.forEach(itEnds);
