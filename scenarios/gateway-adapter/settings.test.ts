// SPDX-License-Identifier: Apache-2.0

/** How a gateway is told which driver to use, by file, environment and command line, and which names it takes. */
import { expect } from "bun:test";
import { unary } from "../../proto/contract.ts";
import { ownLab } from "./given.ts";
import { type GatewayProcess, reservePort } from "./gateway-process.ts";

// The driver's name

ownLab("GA-001 a driver's name is taken in lower case", async (lab) => {
  await lab.listen();
  expect(await driverOf(await lab.start({ driver: "External_Podman", table: "external_podman" }))).toBe(
    "external_podman",
  );
});

ownLab("GA-002 a driver's table must have the name in lower case, or it is not found", async (lab) => {
  expect(await lab.giveUp({ driver: "External_Podman" })).toMatchObject({
    exitCode: 1,
    message: "configuration error: remote compute driver 'external_podman' requires socket_path",
  });
});

ownLab("GA-003 blanks around a driver's name are no part of it", async (lab) => {
  await lab.listen();
  expect(await driverOf(await lab.start({ driver: " ext ", table: "ext" }))).toBe("ext");
});

for (const [id, what, name] of [
  ["GA-004", "with a dot", "ext.podman"],
  ["GA-005", "with a slash", "ext/podman"],
  ["GA-006", "with a blank inside", "ext podman"],
  ["GA-007", "with a letter beyond ASCII", "podmän"],
] as const) {
  ownLab(`${id} a driver's name ${what} is refused with exit code 1`, async (lab) => {
    expect(await lab.giveUp({ driver: name })).toMatchObject({
      exitCode: 1,
      message: `configuration error: invalid compute driver name '${name}'. use ASCII letters, digits, '-' or '_'`,
    });
  });
}

ownLab("GA-008 an empty driver's name is refused with exit code 1", async (lab) => {
  const outcome = await lab.giveUp({ gateway: { compute_drivers: [""] } });
  expect(outcome).toMatchObject({
    exitCode: 1,
    message: "configuration error: compute driver name cannot be empty",
  });
});

ownLab("GA-009 on the command line a bad name is a usage error, exit code 2", async (lab) => {
  const { exitCode, message } = await lab.runToEnd(["--drivers", "ext.podman"]);
  expect(exitCode).toBe(2);
  expect(message).toStartWith(
    "error: invalid value 'ext.podman' for '--drivers <DRIVERS>': invalid compute driver name 'ext.podman'. use ASCII letters, digits, '-' or '_'",
  );
});

ownLab("GA-010 an empty name in the environment is a usage error, exit code 2", async (lab) => {
  const { exitCode, message } = await lab.runToEnd([], { OPENSHELL_DRIVERS: "" });
  expect(exitCode).toBe(2);
  expect(message).toStartWith(
    "error: invalid value '' for '--drivers <DRIVERS>': compute driver name cannot be empty",
  );
});

ownLab("GA-011 two drivers are one too many", async (lab) => {
  expect(await lab.giveUp({ gateway: { compute_drivers: ["a", "b"] } })).toMatchObject({
    exitCode: 1,
    message: "configuration error: multiple compute drivers are not supported yet; configured drivers: a,b",
  });
});

// Its socket

for (const [id, what, table] of [
  ["GA-012", "no", {}],
  ["GA-013", "an empty", { socket_path: "" }],
  ["GA-014", "a number as", { socket_path: 7 }],
] as const) {
  ownLab(`${id} a driver's table with ${what} socket_path is refused with exit code 1`, async (lab) => {
    expect(await lab.giveUp({ driverTable: { ...table } })).toMatchObject({
      exitCode: 1,
      message: "configuration error: remote compute driver 'external-test' requires socket_path",
    });
  });
}

ownLab("GA-015 whatever else is in a driver's table is passed over", async (lab) => {
  await lab.listen();
  await lab.start({ driverTable: { socket_path: lab.socketPath, default_image: "x", nested: { a: [1] } } });
});

ownLab("GA-016 a relative socket_path is relative to the gateway's folder", async (lab) => {
  const driver = await lab.listen();
  await lab.start({ driverTable: { socket_path: "driver.sock" } });
  expect(driver.called("GetCapabilities")).toHaveLength(1);
});

ownLab("GA-017 --compute-driver-socket outdoes the file's socket_path", async (lab) => {
  const driver = await lab.listen({}, lab.path("other.sock"));
  await lab.start({ args: ["--drivers", "external-test", "--compute-driver-socket", driver.path] });
  expect(driver.called("GetCapabilities")).toHaveLength(1);
});

ownLab("GA-018 with --compute-driver-socket even a reserved name is a driver of its own", async (lab) => {
  const driver = await lab.listen();
  const gateway = await lab.start({ args: ["--drivers", "podman", "--compute-driver-socket", driver.path] });
  expect(await driverOf(gateway)).toBe("podman");
  expect(driver.called("GetCapabilities")).toHaveLength(1);
  expect(gateway.log).toContain("configured_driver=podman advertised_driver=scripted in_tree=true");
});

// Flags and environment

ownLab("GA-019 a flag outdoes the environment, which outdoes the file", async (lab) => {
  const driver = await lab.listen();
  const [fromFile, fromEnvironment, fromFlag] = [
    await reservePort(),
    await reservePort(),
    await reservePort(),
  ];
  const gateway = await lab.start({
    port: fromFlag,
    gateway: { bind_address: `127.0.0.1:${fromFile}` },
    args: ["--port", String(fromFlag)],
    env: {
      OPENSHELL_SERVER_PORT: String(fromEnvironment),
      OPENSHELL_DRIVERS: "from-env",
      OPENSHELL_COMPUTE_DRIVER_SOCKET: driver.path,
    },
  });
  expect(gateway.log).toContain(`bind=127.0.0.1:${fromFlag}`);
  expect(await driverOf(gateway)).toBe("from-env");
});

ownLab(
  "GA-020 the variable that drivers share is refused where only the file names the driver",
  async (lab) => {
    const outcome = await lab.giveUp({ env: { OPENSHELL_COMPUTE_DRIVER_SOCKET: "/somewhere" } });
    expect(outcome).toMatchObject({
      exitCode: 1,
      message:
        "--compute-driver-socket requires --drivers <name> or OPENSHELL_DRIVERS=<name> to select a compute driver name",
    });
  },
);

ownLab("GA-021 --compute-driver-socket is for exactly one driver", async (lab) => {
  const outcome = await lab.giveUp({ args: ["--drivers", "a,b", "--compute-driver-socket", "/somewhere"] });
  expect(outcome).toMatchObject({
    exitCode: 1,
    message: "--compute-driver-socket requires exactly one compute driver name, got: a,b",
  });
});

ownLab("GA-022 an empty OPENSHELL_COMPUTE_DRIVER_SOCKET is a usage error, exit code 2", async (lab) => {
  const { exitCode, message } = await lab.giveUp({ env: { OPENSHELL_COMPUTE_DRIVER_SOCKET: "" } });
  expect(exitCode).toBe(2);
  expect(message).toStartWith(
    "error: a value is required for '--compute-driver-socket <COMPUTE_DRIVER_SOCKET>' but none was supplied",
  );
});

/** The configured name under which users see the driver. */
async function driverOf({ client }: GatewayProcess): Promise<string> {
  const { compute_drivers } = await unary(client, client.GetGatewayInfo, {}, { deadlineMs: 10_000 });
  return compute_drivers.map(({ name }) => name).join(",");
}
