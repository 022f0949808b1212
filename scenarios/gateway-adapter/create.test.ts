// SPDX-License-Identifier: Apache-2.0

/** Creating a sandbox: what the driver is asked and told, and what users see when it refuses, fails or hangs. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import type { Struct } from "../../proto/v0.0/types/google/protobuf/Struct.ts";
import type { SandboxTemplate } from "../../proto/v0.0/types/openshell/v1/SandboxTemplate.ts";
import { outcomeOf } from "../../proto/contract.ts";
import { until } from "../../harness/base/waiting.ts";
import { type Bench, fail, gateways, stateOf } from "./given.ts";
import { DRIVER_NAME } from "./gateway-process.ts";

const { scenario } = gateways();

// What the driver is asked

scenario("GA-301 the driver validates a sandbox before it makes it, under the same id", async (given) => {
  const { id, name } = await given.create();
  const { asked } = given.driver;
  expect(asked.map(({ method }) => method)).toEqual(["ValidateSandboxCreate", "CreateSandbox"]);
  for (const { request } of asked) expect(request.sandbox).toMatchObject({ id, name });
});

scenario("GA-302 only the call that makes a sandbox carries its token", async (given) => {
  const { id } = await given.create();
  const [validated, made] = await askedFor(given);
  expect(validated.spec!.sandbox_token).toBe("");
  const claims = Buffer.from(made.spec!.sandbox_token.split(".")[1] ?? "", "base64url").toString();
  expect(JSON.parse(claims)).toMatchObject({
    sub: `spiffe://openshell/sandbox/${id}`,
    sandbox_id: id,
    iss: "openshell-gateway:lab",
    aud: "openshell-gateway:lab",
    exp: 0,
  });
});

scenario("GA-303 a sandbox without an image gets the driver's default image", async (given) => {
  const sandbox = await given.create();
  expect(sandbox.created.spec!.template!.image).toBe("image:default");
  for (const { spec } of await askedFor(given)) expect(spec!.template!.image).toBe("image:default");
});

scenario("GA-304 an image that the user names is not replaced", async (given) => {
  await given.create({ spec: { template: { image: "image:mine" } } });
  expect((await askedFor(given))[1].spec!.template!.image).toBe("image:mine");
});

scenario(
  "GA-305 command, environment, log level, labels and socket reach the driver as they are",
  async (given) => {
    const template = { labels: { l: "1" }, environment: { B: "2" }, agent_socket: "/agent.sock" };
    const spec = { command: ["run", "me"], environment: { A: "1" }, log_level: "debug" };
    await given.create({ spec: { ...spec, template } });
    expect((await askedFor(given))[1].spec).toMatchObject({
      ...spec,
      tty: false,
      template: { labels: { l: "1" }, environment: { B: "2" }, agent_socket_path: "/agent.sock" },
    });
  },
);

scenario("GA-306 a sandbox without a command runs a login shell on a terminal", async (given) => {
  await given.create();
  expect((await askedFor(given))[1].spec).toMatchObject({ command: ["/bin/bash", "-l"], tty: true });
});

scenario("GA-307 the driver sees no namespace, an empty status, and the workspace by name", async (given) => {
  await given.create();
  const expected = {
    namespace: "",
    workspace: "default",
    status: { sandbox_name: "", instance_id: "", conditions: [], deleting: false },
  };
  for (const sandbox of await askedFor(given)) expect(sandbox).toMatchObject(expected);
});

scenario(
  "GA-308 the request's labels and annotations, and the policy, stay in the gateway",
  async (given) => {
    await given.create({
      labels: { secret: "label" },
      annotations: { secret: "annotation" },
      spec: { policy: { version: 1, filesystem: { read_only: ["/secret"] } } },
    });
    for (const sandbox of await askedFor(given)) expect(JSON.stringify(sandbox)).not.toContain('secret"');
    expect((await askedFor(given))[1].spec!.template!.labels).toEqual({});
  },
);

scenario("GA-309 limits and requests of CPU and memory are fields of their own", async (given) => {
  await templated(given, {
    resources: struct({
      limits: struct({ cpu: "2", memory: "1Gi" }),
      requests: struct({ cpu: "500m", memory: "256Mi" }),
    }),
  });
  const { template } = (await askedFor(given))[1].spec!;
  expect(template!.resources).toEqual({
    cpu_request: "500m",
    cpu_limit: "2",
    memory_request: "256Mi",
    memory_limit: "1Gi",
  });
  expect(template!.platform_config).toBeNull();
});

scenario("GA-310 other resources are left as they are, in platform_config", async (given) => {
  await templated(given, { resources: struct({ limits: struct({ cpu: "2", "nvidia.com/gpu": "1" }) }) });
  const { template } = (await askedFor(given))[1].spec!;
  expect(template!.platform_config).toMatchObject({
    fields: { resources_raw: { structValue: struct({ limits: struct({ "nvidia.com/gpu": "1" }) }) } },
  });
});

scenario("GA-311 runtime class, annotations and user namespaces are in platform_config", async (given) => {
  await templated(given, { runtime_class_name: "fast", annotations: { x: "y" }, user_namespaces: true });
  const { template } = (await askedFor(given))[1].spec!;
  expect(template!.platform_config).toMatchObject({
    fields: {
      runtime_class_name: { stringValue: "fast" },
      annotations: { structValue: struct({ x: "y" }) },
      host_users: { boolValue: false },
    },
  });
});

scenario("GA-312 of driver_config the driver gets the block of its configured name alone", async (given) => {
  const blocks = struct({ [DRIVER_NAME]: struct({ mine: "yes" }), scripted: struct({ theirs: "no" }) });
  await templated(given, { driver_config: blocks });
  for (const { spec } of await askedFor(given))
    expect(spec!.template!.driver_config).toMatchObject(struct({ mine: "yes" }));
  expect(JSON.stringify((await askedFor(given))[1])).not.toContain("theirs");
});

scenario(
  "GA-313 a block of driver_config that is no object is refused, and the driver not asked",
  async (given) => {
    const call = templated(given, { driver_config: struct({ [DRIVER_NAME]: "text" }) });
    expect(await outcomeOf(call)).toBe(
      `INVALID_ARGUMENT: template.driver_config.${DRIVER_NAME} must be an object`,
    );
    expect(given.driver.called("ValidateSandboxCreate")).toEqual([]);
    expect(given.driver.called("CreateSandbox")).toEqual([]);
  },
);

scenario("GA-314 a GPU that is asked for reaches the driver", async (given) => {
  await given.create({ spec: { resource_requirements: { gpu: { count: 2 } } } });
  expect((await askedFor(given))[1].spec!.resource_requirements).toMatchObject({ gpu: { count: 2 } });
});

// Names

scenario("GA-315 a sandbox without a name gets one that a route can hold", async (given) => {
  const sandbox = await given.create();
  expect(sandbox.name).toMatch(/^[a-z]+(-[a-z0-9]+)*$/);
  expect(sandbox.name.length).toBeLessThanOrEqual(19);
  expect(stateOf(sandbox.created)).toBe("PROVISIONING -");
  expect(sandbox.created.metadata).toMatchObject({ workspace: "default", resource_version: "1" });
});

for (const [id, what, name, message] of [
  ["GA-316", "of more than 19 characters", "a".repeat(20), "name exceeds maximum length (20 > 19)"],
  ["GA-317", "in upper case", "Upper", "name must contain only lowercase alphanumeric characters or hyphens"],
  [
    "GA-318",
    "with an underscore",
    "a_b",
    "name must contain only lowercase alphanumeric characters or hyphens",
  ],
  ["GA-319", "that begins with a hyphen", "-a", "name must not start or end with a hyphen"],
  ["GA-320", "that ends with a hyphen", "a-", "name must not start or end with a hyphen"],
  ["GA-321", "with two hyphens in a row", "a--b", "name must not contain consecutive hyphens"],
] as const) {
  scenario(
    `${id} a name ${what} is refused with its own message, and the driver not asked`,
    async (given) => {
      expect(await outcomeOf(given.create({ name }))).toBe(`INVALID_ARGUMENT: ${message}`);
      expect(given.driver.called("ValidateSandboxCreate")).toEqual([]);
    },
  );
}

scenario("GA-322 a name of 19 characters is taken", async (given) => {
  expect((await given.create({ name: "a".repeat(19) })).name).toBe("a".repeat(19));
});

scenario(
  "GA-323 a name that is taken is refused after the driver validated it, and nothing is made",
  async (given) => {
    await given.create({ name: "twice" });
    given.driver.calls = [];
    expect(await outcomeOf(given.create({ name: "twice" }))).toBe(
      "ALREADY_EXISTS: sandbox 'twice' already exists",
    );
    expect(given.driver.called("ValidateSandboxCreate")).toHaveLength(1);
    expect(given.driver.called("CreateSandbox")).toEqual([]);
  },
);

scenario("GA-324 what the gateway itself must refuse never reaches the driver", async (given) => {
  expect(await outcomeOf(given.create({ spec: null }))).toBe("INVALID_ARGUMENT: spec is required");
  expect(await outcomeOf(given.create({ spec: { providers: ["x"] } }))).toBe(
    "FAILED_PRECONDITION: provider 'x' not found",
  );
  expect(await outcomeOf(given.create({ workspace: "nowhere" }))).toBe(
    "NOT_FOUND: workspace 'nowhere' not found",
  );
  expect(given.driver.called("ValidateSandboxCreate")).toEqual([]);
});

// A driver that refuses to validate

for (const [id, code] of [
  ["GA-325", status.INVALID_ARGUMENT],
  ["GA-326", status.FAILED_PRECONDITION],
  ["GA-327", status.UNIMPLEMENTED],
  ["GA-328", status.UNAVAILABLE],
  ["GA-329", status.RESOURCE_EXHAUSTED],
] as const) {
  scenario(`${id} ${status[code]} of ValidateSandboxCreate reaches the user as it is`, async (given) => {
    given.driver.on("ValidateSandboxCreate", fail(code, "as I said"));
    expect(await outcomeOf(given.create({ name: "refused" }))).toBe(`${status[code]}: as I said`);
    expect(given.driver.called("CreateSandbox")).toEqual([]);
    expect(await outcomeOf(given.get("refused"))).toBe("NOT_FOUND: sandbox not found");
  });
}

// A driver that fails to create

for (const [id, code] of [
  ["GA-330", status.INVALID_ARGUMENT],
  ["GA-331", status.DEADLINE_EXCEEDED],
  ["GA-332", status.NOT_FOUND],
  ["GA-333", status.PERMISSION_DENIED],
  ["GA-334", status.RESOURCE_EXHAUSTED],
  ["GA-335", status.UNIMPLEMENTED],
  ["GA-336", status.INTERNAL],
  ["GA-337", status.UNAVAILABLE],
] as const) {
  scenario(
    `${id} ${status[code]} of CreateSandbox is INTERNAL, leaves no record, and nothing is deleted`,
    async (given) => {
      given.driver.on("CreateSandbox", fail(code, "no way"));
      expect(await outcomeOf(given.create({ name: "unmade" }))).toBe(
        "INTERNAL: create sandbox failed: no way",
      );
      expect(await outcomeOf(given.get("unmade"))).toBe("NOT_FOUND: sandbox not found");
      expect(given.driver.called("DeleteSandbox")).toEqual([]);
    },
  );
}

scenario("GA-338 ALREADY_EXISTS of CreateSandbox keeps its code, not its message", async (given) => {
  given.driver.on("CreateSandbox", fail(status.ALREADY_EXISTS, "mine"));
  expect(await outcomeOf(given.create({ name: "there" }))).toBe("ALREADY_EXISTS: sandbox already exists");
  expect(await outcomeOf(given.get("there"))).toBe("NOT_FOUND: sandbox not found");
});

scenario("GA-339 FAILED_PRECONDITION of CreateSandbox reaches the user as it is", async (given) => {
  given.driver.on("CreateSandbox", fail(status.FAILED_PRECONDITION, "no gpu"));
  expect(await outcomeOf(given.create({ name: "waits" }))).toBe("FAILED_PRECONDITION: no gpu");
  expect(await outcomeOf(given.get("waits"))).toBe("NOT_FOUND: sandbox not found");
});

scenario("GA-340 the name of a sandbox that could not be made is free again", async (given) => {
  given.driver.on("CreateSandbox", fail(status.UNAVAILABLE, "no way"));
  await outcomeOf(given.create({ name: "again" }));
  given.driver.usual("CreateSandbox");
  expect((await given.create({ name: "again" })).name).toBe("again");
});

// A driver that hangs

scenario(
  "GA-341 a create that hangs is visible as Provisioning, and holds no other create up",
  async (given) => {
    given.driver.hang("CreateSandbox");
    void outcomeOf(given.create({ name: "hung" }, { deadlineMs: 3_000 }));
    await until("the call to reach the driver", () => given.driver.called("CreateSandbox")[0]);
    given.driver.usual("CreateSandbox");
    await given.create();
    expect(stateOf(await given.get("hung"))).toBe("PROVISIONING -");
  },
);

scenario("GA-342 a create that is answered late is as good as any", async (given) => {
  const release = given.driver.hang("CreateSandbox");
  const creating = given.create();
  await until("the call to reach the driver", () => given.driver.called("CreateSandbox")[0]);
  release();
  const sandbox = await creating;
  await sandbox.supervise();
  await sandbox.reaches("READY");
});

scenario("GA-343 a driver may take its time to validate; the name is not taken meanwhile", async (given) => {
  const release = given.driver.hang("ValidateSandboxCreate");
  const creating = given.create({ name: "slow" });
  await until("the call to reach the driver", () => given.driver.called("ValidateSandboxCreate")[0]);
  expect(await outcomeOf(given.get("slow"))).toBe("NOT_FOUND: sandbox not found");
  release();
  expect((await creating).name).toBe("slow");
});

scenario("GA-344 a snapshot that comes before CreateSandbox is answered counts", async (given) => {
  const release = given.driver.hang("CreateSandbox");
  const creating = given.create({ name: "early" });
  const [{ request }] = [await until("the call", () => given.driver.called("CreateSandbox")[0])];
  given.driver.snapshot(request.sandbox!.id, { instance_id: "container-1" }, { name: "early" });
  await until("the snapshot", async () => (await given.get("early")).status!.agent_pod === "container-1");
  release();
  await creating;
  expect((await given.get("early")).status!.agent_pod).toBe("container-1");
});

// Workspaces

scenario(
  "GA-345 a sandbox of another workspace is the driver's under that workspace's name",
  async (given) => {
    await given.call((client) => client.CreateWorkspace, { name: "side" });
    await given.create({ workspace: "side" });
    expect((await askedFor(given))[1].workspace).toBe("side");
    expect(given.driver.called("EnsureWorkspace")).toEqual([]);
  },
);

scenario("GA-346 the driver releases a workspace that is deleted", async (given) => {
  await given.call((client) => client.CreateWorkspace, { name: "left" });
  await given.call((client) => client.DeleteWorkspace, { name: "left" });
  expect(given.driver.called("DeleteWorkspace").map(({ request }) => request.workspace)).toEqual(["left"]);
});

scenario("GA-347 a driver without DeleteWorkspace keeps no workspace from being deleted", async (given) => {
  await given.call((client) => client.CreateWorkspace, { name: "plain" });
  given.driver.on("DeleteWorkspace", fail(status.UNIMPLEMENTED, "never heard of it"));
  expect(await outcomeOf(given.call((client) => client.DeleteWorkspace, { name: "plain" }))).toBe("OK");
});

scenario(
  "GA-348 a workspace that the driver cannot release stays, with the driver's code and reason",
  async (given) => {
    const name = "held";
    await given.call((client) => client.CreateWorkspace, { name });
    given.driver.on("DeleteWorkspace", fail(status.UNAVAILABLE, "not now"));
    expect(await outcomeOf(given.call((client) => client.DeleteWorkspace, { name }))).toBe(
      `UNAVAILABLE: delete workspace platform resources failed: code: 'The service is currently unavailable', message: "not now"`,
    );
    expect(await outcomeOf(given.call((client) => client.GetWorkspace, { name }))).toBe("OK");
    given.driver.usual("DeleteWorkspace");
    expect(await outcomeOf(given.call((client) => client.DeleteWorkspace, { name }))).toBe("OK");
  },
);

scenario("GA-349 a workspace that still holds a sandbox is not the driver's to release", async (given) => {
  await given.call((client) => client.CreateWorkspace, { name: "full" });
  await given.create({ workspace: "full" });
  expect(await outcomeOf(given.call((client) => client.DeleteWorkspace, { name: "full" }))).toBe(
    "FAILED_PRECONDITION: workspace 'full' still contains resources: sandbox",
  );
  expect(given.driver.called("DeleteWorkspace")).toEqual([]);
});

/** The sandbox of the last ValidateSandboxCreate, and that of the last CreateSandbox. */
async function askedFor({ driver }: Bench) {
  return (["ValidateSandboxCreate", "CreateSandbox"] as const).map(
    (method) => driver.called(method).at(-1)!.request.sandbox!,
  ) as [Sandbox, Sandbox];
}
type Sandbox = NonNullable<Bench["driver"]["calls"][0]["request"]["sandbox"]>;

const templated = ({ create }: Bench, template: SandboxTemplate) => create({ spec: { template } });

function struct(fields: Record<string, string | Struct>): Struct {
  const value = (of: string | Struct) => (typeof of === "string" ? { stringValue: of } : { structValue: of });
  return { fields: Object.fromEntries(Object.entries(fields).map(([key, of]) => [key, value(of)])) };
}
