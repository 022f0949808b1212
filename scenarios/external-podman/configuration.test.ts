// SPDX-License-Identifier: Apache-2.0

/** How a gateway is told of an external driver, and what it then says to it. */
import { credentials, status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import type { Connection } from "../../harness/runtime/connection.ts";
import {
  DRIVER_NAME,
  eventually,
  type Given,
  HarnessError,
  refusal,
  RunningStack,
  type SandboxOptions,
  scenario,
} from "../../harness.ts";
import type { StackSpec } from "../../harness/runtime/stack.ts";
import { computeDriver, unary } from "../../proto/contract.ts";
import type { DriverSandbox__Output } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { GetCapabilitiesResponse__Output } from "../../proto/v0.0/types/openshell/compute/v1/GetCapabilitiesResponse.ts";
import { ancestry, listenersOn, struct, withoutPodmanDriver, withoutProc } from "./given.ts";

// A driver by name

scenario("CF-01 the gateway reports its driver under the configured name", async ({ stack, gateway }) => {
  const { driver_name, driver_version } = await capabilitiesOf(stack.info.driverSocket);
  const drivers = await gateway.drivers();
  expect(drivers).toMatchObject([{ name: DRIVER_NAME, capabilities: { driver_name, driver_version } }]);
});

/** What a driver says of itself, asked directly. */
async function capabilitiesOf(socket: string): Promise<GetCapabilitiesResponse__Output> {
  const { ComputeDriver } = computeDriver();
  const driver = new ComputeDriver(`unix:${socket}`, credentials.createInsecure());
  try {
    return await unary(driver, driver.GetCapabilities, {}, { deadlineMs: 5_000 });
  } finally {
    driver.close();
  }
}

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

// How the gateway is told

/** A stack whose gateway is to end before it needs a driver. */
const ALONE = { order: "gateway-only" } as const;
/** A fake gateway is told to wait less for its driver than the real one's 30 s; the real one knows no such variable. */
const IN_VAIN = { ...ALONE, deadlineMs: 40_000, gatewayEnv: { OPENSHELL_FAKE_DIAL_SECONDS: "0.5" } };

const isInVain = (spec: StackSpec): boolean => spec.deadlineMs === IN_VAIN.deadlineMs;

type Configuration = [title: string, spec: StackSpec, outcome: RegExp];

const CONFIGURATIONS: Configuration[] = [
  [
    "CF-05 the configured name is put in lower case, for which its table is looked up",
    { driverName: "External_Podman", tableName: "external_podman" },
    /^started with external_podman after GetCapabilities OK$/,
  ],
  [
    "CF-06 a driver's table whose name is not in lower case is not found",
    { ...ALONE, driverName: "External_Podman", tableName: "External_Podman" },
    /exit code 1.* remote compute driver 'external_podman' requires socket_path/s,
  ],
  [
    "CF-07 a driver's table without socket_path is refused",
    { ...ALONE, table: {} },
    /exit code 1.* remote compute driver 'external-podman' requires socket_path/s,
  ],
  [
    "CF-08 a driver's name has no dots",
    { ...ALONE, driverName: "ext.podman" },
    /exit code 1.* invalid compute driver name 'ext\.podman'\. use ASCII letters, digits, '-' or '_'/s,
  ],
  [
    "CF-09 a driver's name is not empty",
    { ...ALONE, driverName: " " },
    /exit code 1.* compute driver name cannot be empty/s,
  ],
  [
    "CF-10 a gateway has one driver",
    { ...ALONE, gatewayTable: { compute_drivers: [DRIVER_NAME, "other"] } },
    /exit code 1.* multiple compute drivers are not supported yet; configured drivers: external-podman,other/s,
  ],
  [
    "CF-11 with no name in compute_drivers a driver's table chooses nothing",
    { ...ALONE, gatewayTable: { compute_drivers: [] } },
    // A gateway with drivers of its own takes one whose engine it finds on this machine.
    /auto-detection found no|failed to create compute runtime|started with (docker|kubernetes|podman) after nothing/,
  ],
  [
    "CF-12 a key that the gateway does not know is refused by name",
    { ...ALONE, gatewayTable: { compute_driver: DRIVER_NAME } },
    /exit code 1.* unknown field `compute_driver`/s,
  ],
  [
    "CF-13 --drivers and --compute-driver-socket win over the config file",
    {
      table: { socket_path: "/no/driver.sock" },
      gatewayArgs: ["--drivers", "from-flags", "--compute-driver-socket", "{socket}"],
    },
    /^started with from-flags after GetCapabilities OK$/,
  ],
  [
    "CF-14 OPENSHELL_COMPUTE_DRIVER_SOCKET, a driver's variable too, stops a gateway that is not told --drivers",
    { ...ALONE, gatewayEnv: { OPENSHELL_COMPUTE_DRIVER_SOCKET: "{socket}" } },
    /exit code 1.* --compute-driver-socket requires --drivers/s,
  ],
  [
    "CF-15 with --compute-driver-socket even a reserved name is the external driver",
    {
      driverName: "podman",
      table: {},
      gatewayArgs: ["--drivers", "podman", "--compute-driver-socket", "{socket}"],
    },
    /^started with podman after GetCapabilities OK$/,
  ],
  [
    "CF-16 without it a reserved name never passes for the external driver unseen",
    { driverName: "podman" },
    // The gateway's own driver takes our socket for Podman's. One that was built without any reserves no names.
    /failed to create compute runtime|in-tree compute driver|^started with podman after GetCapabilities OK$/,
  ],
  [
    "CF-17 the driver may be started after the gateway",
    { order: "gateway-first" },
    /^started with external-podman after GetCapabilities OK$/,
  ],
  [
    "CF-27 a gateway whose driver never comes gives up after 30 s and names the socket",
    { ...IN_VAIN, table: { socket_path: "/no/driver.sock" } },
    /exit code 1.* failed to connect to remote compute driver socket '\/no\/ ?driver\.sock' within (30|0\.5)s/s,
  ],
  [
    "CF-28 a plain file where the driver's socket should be is as good as none",
    { ...IN_VAIN, table: { socket_path: import.meta.path } },
    /exit code 1.* failed to connect to remote compute driver socket '.*test\.ts' within (30|0\.5)s/s,
  ],
];

const itEnds = ([title, , outcome]: Configuration): void =>
  scenario(title, async ({ stack }) => {
    expect(await outcomesOver(stack.keeper).get(title)).toMatch(outcome);
  });

CONFIGURATIONS.filter(([, spec]) => !isInVain(spec)).forEach(itEnds);

let outcomes: Map<string, Promise<string>> | undefined;

/** What comes of each configuration. All are tried when the first is asked for, since some take a gateway 30 s. */
function outcomesOver(keeper: Connection): Map<string, Promise<string>> {
  return (outcomes ??= new Map(CONFIGURATIONS.map(([title, spec]) => [title, outcomeOf(keeper, spec)])));
}

/** Starts such a stack. Resolves with a line if it starts, else with what its user is told. */
async function outcomeOf(keeper: Connection, spec: StackSpec): Promise<string> {
  try {
    const stack = new RunningStack(keeper, await keeper.call("startStack", spec));
    const [driver] = await stack.gateway.drivers();
    const [call] = await stack.calls();
    const left = await stack.stop();
    return [`started with ${driver?.name} after ${call?.method ?? "nothing"} ${call?.status}`, ...left].join(
      "\n",
    );
  } catch (error) {
    return (error as Error).message;
  }
}

// What crosses the socket

scenario("CF-18 a life crosses the socket as one call a step, in order", async ({ startStack }) => {
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

scenario("CF-19 the same life works with nothing between gateway and driver", async ({ startStack }) => {
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

scenario("CF-25 a driver_config block must be a table", async ({ gateway }) => {
  const driver_config = struct({ [DRIVER_NAME]: "text" });
  expect(await refusal(gateway.createSandbox({ template: { driver_config } }))).toEqual({
    code: "INVALID_ARGUMENT",
    message: `template.driver_config.${DRIVER_NAME} must be an object`,
  });
});

// Two gateways

scenario("CF-26 two gateways on one engine do not see each other's sandboxes", async (given) => {
  const other = await given.sharedStack({ tls: true });
  const [ours, theirs] = await Promise.all([given.gateway.readySandbox(), other.gateway.readySandbox()]);
  expect(await given.gateway.listSandboxes()).toContain(ours.name);
  expect(await given.gateway.listSandboxes()).not.toContain(theirs.name);
  expect(await other.gateway.listSandboxes()).toEqual([theirs.name]);
  await theirs.delete();
  expect((await ours.refresh()).phase).toBe("READY");
});

// What the driver is given: alone, for these look at all calls, and steer some

scenario.alone(
  "CF-20 the driver is given the id, name and workspace that users see",
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

scenario.alone(
  "CF-21 a sandbox's token crosses in CreateSandbox alone, and no record shows it",
  async (given) => {
    const { validated, created } = await askedOfDriver(given, {});
    expect(validated.spec).not.toHaveProperty("sandbox_token");
    expect(created.spec).toHaveProperty("sandbox_token", "<redacted>");
  },
);

scenario.alone("CF-22 a template's labels reach the driver, a sandbox's own do not", async (given) => {
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

scenario.alone(
  "CF-23 of driver_config, the configured name's block alone reaches the driver",
  async (given) => {
    const driver_config = struct({ [DRIVER_NAME]: {}, podman: { no_such_field: true } });
    const { created } = await askedOfDriver(given, { template: { driver_config } });
    expect(created.spec?.template).toHaveProperty("driver_config", { fields: {} });
  },
);

scenario.alone(
  "CF-24 what the driver finds wrong with its driver_config is what the user is told",
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

// Last, for by now these have been trying for a while

CONFIGURATIONS.filter(([, spec]) => isInVain(spec)).forEach(itEnds);
