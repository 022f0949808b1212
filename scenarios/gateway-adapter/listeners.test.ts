// SPDX-License-Identifier: Apache-2.0

/** Where a driver may ask its gateway to listen for sandboxes, who may call there, and what cannot be asked for. */
import { networkInterfaces } from "node:os";
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { unary, outcomeOf } from "../../proto/contract.ts";
import type { GatewayListenerRequirement } from "../../proto/v0.0/types/openshell/compute/v1/GatewayListenerRequirement.ts";
import { until } from "../../harness/base/waiting.ts";
import { fail, ownLab, Bench } from "./given.ts";
import { DRIVER_NAME, type GatewayProcess, type Lab, reservePort } from "./gateway-process.ts";

const CONFIG = "configuration error: compute driver requested ";
const RUNTIME = `execution error: failed to create compute runtime: compute driver '${DRIVER_NAME}' returned `;
const CALL = { deadlineMs: 10_000 };

// What is granted

ownLab("GA-201 a driver without GetGatewayListenerRequirements has none", async (lab) => {
  await lab.listen({ GetGatewayListenerRequirements: fail(status.UNIMPLEMENTED, "never heard of it") });
  expect(listeners(await lab.start())).toHaveLength(1);
});

ownLab("GA-202 a further address is opened, and the log says why", async (lab) => {
  const { gateway, port } = await started(lab, (port) => [
    { reason: "bridge", exact_bind_address: `127.0.0.2:${port}` },
  ]);
  expect(listeners(gateway)[1]).toContain(`address=127.0.0.2:${port}`);
  expect(listeners(gateway)[1]).toMatch(/listener_purpose="?compute-driver-callback"?.* reason="?bridge"?/);
});

ownLab("GA-203 there sandboxes may make their calls", async (lab) => {
  const { gateway, bench } = await onBridge(lab);
  const { id, supervisor } = await bench.readySandbox();
  const client = gateway.connect("127.0.0.2");
  const options = { ...CALL, metadata: supervisor!.metadata() };
  const call = unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: id }, options);
  expect(await outcomeOf(call)).toBe("OK");
});

ownLab("GA-204 there users may call nothing, not even Health", async (lab) => {
  const { gateway } = await onBridge(lab);
  const client = gateway.connect("127.0.0.2");
  const refused = "PERMISSION_DENIED: compute-driver callback listeners accept sandbox callback RPCs only";
  expect(await outcomeOf(unary(client, client.Health, {}, CALL))).toBe(refused);
  expect(await outcomeOf(unary(client, client.ListSandboxes, {}, CALL))).toBe(refused);
  expect(await outcomeOf(unary(client, client.CreateSandbox, { spec: {} }, CALL))).toBe(refused);
});

ownLab("GA-205 a session that comes in there makes its sandbox Ready", async (lab) => {
  const { gateway, bench } = await onBridge(lab);
  const sandbox = await bench.create();
  await sandbox.supervise("instance-1", gateway.connect("127.0.0.2"));
  await sandbox.reaches("READY");
});

ownLab("GA-206 an address that is covered already is not opened again", async (lab) => {
  const { gateway } = await started(lab, (port) => [
    { reason: "one", exact_bind_address: `127.0.0.2:${port}` },
    { reason: "two", exact_bind_address: `127.0.0.2:${port}` },
    { reason: "primary", exact_bind_address: `127.0.0.1:${port}` },
  ]);
  expect(listeners(gateway)).toHaveLength(2);
});

ownLab(
  "GA-207 the loopback interface is what a gateway on loopback has already, for all calls",
  async (lab) => {
    const { gateway } = await started(lab, () => [{ reason: "local", loopback_interface: {} }]);
    expect(listeners(gateway)).toHaveLength(1);
    await gateway.answering();
  },
);

ownLab("GA-208 a gateway elsewhere opens loopback for sandboxes alone", async (lab) => {
  const port = await reservePort();
  await lab.listen(requirements({ reason: "local", loopback_interface: {} }));
  const gateway = await lab.launch({ port, gateway: { bind_address: `127.0.0.3:${port}` } });
  const client = gateway.connect("127.0.0.3");
  await gateway.answering(client);
  expect(await outcomeOf(unary(gateway.client, gateway.client.Health, {}, CALL))).toStartWith(
    "PERMISSION_DENIED",
  );
});

ownLab("GA-209 the default route's address is opened if it is private, and else refused", async (lab) => {
  const port = await reservePort();
  await lab.listen(requirements({ reason: "pasta", default_route_interface: {} }));
  const gateway = await lab.launch({ port });
  const opened = () => listeners(gateway).length === 2;
  await until("an answer", () => opened() || gateway.ended, { seen: () => gateway.log, deadlineMs: 20_000 });
  if (gateway.ended) {
    expect(gateway.ended).toBe("exit code 1");
    const words = gateway.log.replaceAll(/\n\s*│ ?/g, " ");
    expect(words).toMatch(
      /not a private IPv4 address \(reason: pasta\)|failed to resolve IPv4 default route/,
    );
  } else {
    const own = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
    const [, address] = /address=([\d.]+):/.exec(listeners(gateway)[1]!)!;
    expect(own.map((each) => each.address)).toContain(address!);
    expect(address).toMatch(/^(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.)/);
  }
});

// What is refused

const refused: [
  id: string,
  what: string,
  asks: (port: number) => GatewayListenerRequirement,
  says: (port: number) => string,
][] = [
  [
    "GA-210",
    "without a selector",
    () => ({}),
    () => `${RUNTIME}a gateway listener requirement without a selector`,
  ],
  [
    "GA-211",
    "of an address that is none",
    () => ({ exact_bind_address: "banana" }),
    () => `${RUNTIME}invalid gateway listener address 'banana': invalid socket address syntax`,
  ],
  [
    "GA-212",
    "of a host by name",
    (port) => ({ exact_bind_address: `localhost:${port}` }),
    (port) => `${RUNTIME}invalid gateway listener address 'localhost:${port}': invalid socket address syntax`,
  ],
  [
    "GA-213",
    "of an address without a port",
    () => ({ exact_bind_address: "127.0.0.2" }),
    () => `${RUNTIME}invalid gateway listener address '127.0.0.2': invalid socket address syntax`,
  ],
  [
    "GA-214",
    "of all interfaces",
    (port) => ({ exact_bind_address: `0.0.0.0:${port}` }),
    (port) => `${CONFIG}wildcard gateway listener 0.0.0.0:${port}`,
  ],
  [
    "GA-215",
    "of all IPv6 interfaces",
    (port) => ({ exact_bind_address: `[::]:${port}` }),
    (port) => `${CONFIG}wildcard gateway listener [::]:${port}`,
  ],
  [
    "GA-216",
    "of a multicast address",
    (port) => ({ exact_bind_address: `224.0.0.1:${port}` }),
    (port) => `${CONFIG}multicast gateway listener 224.0.0.1:${port}`,
  ],
  [
    "GA-217",
    "of port 0",
    () => ({ exact_bind_address: "127.0.0.1:0" }),
    () => `${CONFIG}zero-port gateway listener 127.0.0.1:0`,
  ],
  [
    "GA-218",
    "of another port",
    () => ({ exact_bind_address: "127.0.0.2:1" }),
    (port) => `${CONFIG}gateway listener 127.0.0.2:1 with port 1, but the primary listener uses port ${port}`,
  ],
  [
    "GA-219",
    "of an address that this machine does not have",
    (port) => ({ exact_bind_address: `203.0.113.1:${port}` }),
    (port) =>
      `transport error: failed to bind to 203.0.113.1:${port}: Cannot assign requested address (os error 99)`,
  ],
];
for (const [id, what, asks, says] of refused) {
  ownLab(`${id} a requirement ${what} ends the start with exit code 1 and its own message`, async (lab) => {
    const port = await reservePort();
    await lab.listen(requirements({ reason: "why", ...asks(port) }));
    expect(await lab.giveUp({ port })).toMatchObject({ exitCode: 1, message: says(port) });
  });
}

ownLab("GA-220 a driver that fails to say what it requires ends the start with exit code 1", async (lab) => {
  await lab.listen({ GetGatewayListenerRequirements: fail(status.INTERNAL, "confused") });
  expect(await lab.giveUp()).toMatchObject({
    exitCode: 1,
    message: "execution error: failed to create compute runtime: confused",
  });
});

// Given

const requirements = (...all: GatewayListenerRequirement[]) => ({
  GetGatewayListenerRequirements: () => ({ requirements: all }),
});

/** A gateway whose driver requires what `asks` says for the gateway's port. */
async function started(lab: Lab, asks: (port: number) => GatewayListenerRequirement[]) {
  const port = await reservePort();
  const driver = await lab.listen(requirements(...asks(port)));
  const gateway = await lab.start({ port });
  return { gateway, port, bench: new Bench(lab, driver, gateway) };
}

const onBridge = (lab: Lab) =>
  started(lab, (port) => [{ reason: "bridge", exact_bind_address: `127.0.0.2:${port}` }]);

/** The log's lines about listeners, the primary one first. */
const listeners = ({ log }: GatewayProcess): string[] =>
  log.split("\n").filter((line) => line.includes("Gateway listener bound"));
