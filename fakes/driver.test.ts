// SPDX-License-Identifier: Apache-2.0

/**
 * What a Podman compute driver does, asked on its socket. The same assertions hold for fakes/driver.ts and for the binary
 * that OPENSHELL_DRIVER_BIN names; where the first-party driver is known to be wrong, the test says what it does instead.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { status as Code } from "@grpc/grpc-js";
import type { ServiceError } from "@grpc/grpc-js";
import { FrameCall } from "../contract/frame-call.ts";
import { codeName, computeDriver, unary } from "../proto/contract.ts";
import { settles } from "./engine/lab.ts";
import {
  bootEngine,
  bridgeAddress,
  call,
  closeLab,
  containerName,
  Driver,
  driver,
  engine,
  engineFailure,
  eventually,
  FIRST_PARTY,
  flagsFor,
  home,
  inspect,
  killEngine,
  NETWORK,
  openLab,
  options,
  outcome,
  REAL_ENGINE,
  remains,
  runDriver,
  sandbox,
  SANDBOX_IMAGE,
  startDriver,
  struct,
  SUBJECT,
  SUPERVISOR_IMAGE,
  Tap,
  Watcher,
  workspace,
} from "./driver/lab.ts";

// Far above our own deadlines: when one of bun's passes, bun kills every child of this process.
setDefaultTimeout(60_000);

beforeAll(openLab);

afterAll(async () => expect(await closeLab()).toEqual({ left: [], code: 0 }));

/** No test leaves a sandbox. */
afterEach(async () => {
  if (driver.process.exitCode !== null) return;
  const left = await call.list();
  await Promise.all(left.map(({ id }) => call.delete(id)));
  expect(left.map(({ name }) => name)).toEqual([]);
});

describe(`${SUBJECT}: start`, () => {
  test("its socket is private, in a private folder", async () => {
    await using own = await startDriver();
    expect(statSync(own.socket).mode & 0o777).toBe(0o600);
    expect(statSync(join(own.socket, "..")).mode & 0o777).toBe(0o700);
  });

  test("a socket that a dead driver left is replaced", async () => {
    const { socket } = flagsFor();
    mkdirSync(join(socket, ".."));
    const dead = createServer().listen(socket);
    await eventually("a socket", () => existsSync(socket));
    const kept = `${socket}.kept`;
    // Closing removes the file; a killed process would not.
    Bun.spawnSync(["ln", socket, kept]);
    await new Promise((done) => dead.close(done));
    Bun.spawnSync(["mv", kept, socket]);
    await using own = await startDriver({ "bind-socket": socket });
    expect((await unary(own.client, own.client.GetCapabilities, {}, options)).driver_name).toBe("podman");
  });

  test("a file in the socket's place is left alone", async () => {
    const { socket, flags } = flagsFor();
    mkdirSync(join(socket, ".."));
    writeFileSync(socket, "precious");
    const { code, output } = await runDriver(flags);
    expect(code).toBe(1);
    expect(output.replace(/\s*\n[\s│]*/g, " ")).toContain("exists but is not an owned Unix socket");
    expect(readFileSync(socket, "utf8")).toBe("precious");
  });

  test("a symlink for the socket's folder is refused", async () => {
    const { socket, flags } = flagsFor();
    mkdirSync(join(home, "elsewhere"), { recursive: true });
    symlinkSync(join(home, "elsewhere"), join(socket, ".."));
    const { code, output } = await runDriver(flags);
    expect(code).toBe(1);
    expect(output.replace(/\s*\n[\s│]*/g, " ")).toContain("must be a directory, not a symlink");
  });

  test.each([
    [["--no-such-flag"], "unexpected argument '--no-such-flag' found"],
    [["--stop-timeout", "2", "--stop-timeout", "3"], "cannot be used multiple times"],
    [["--stop-timeout", "soon"], "invalid value 'soon' for '--stop-timeout"],
    [["--sandbox-image-pull-policy", "sometimes"], "expected one of: always, missing, never, newer"],
    [["--gateway-port"], "a value is required for '--gateway-port"],
  ])("%j is a usage error", async (flags, message) => {
    const { code, output } = await runDriver(flags);
    expect(code).toBe(2);
    expect(output).toContain(message);
    if (!FIRST_PARTY) expect(output.trim().split("\n")).toHaveLength(1);
  });

  test.each([
    [
      ["--podman-tls-ca", "/ca.pem"],
      "Missing: --podman-tls-cert / OPENSHELL_PODMAN_TLS_CERT, --podman-tls-key",
    ],
    [["--sandbox-pids-limit=-1"], "sandbox_pids_limit must be zero or greater"],
    [["--sandbox-no-proxy", "localhost"], "no_proxy is set but no https_proxy is configured"],
    [["--host-gateway-ip", "gateway"], "invalid host_gateway_ip value 'gateway'"],
  ])("%j is refused before anything starts", async (extra, message) => {
    const { flags } = flagsFor();
    const { code, output } = await runDriver([...flags, ...extra]);
    expect(code).toBe(1);
    expect(output.replace(/\s*\n[\s│]*/g, " ")).toContain(message);
  });

  test("--version says what it is", async () => {
    const { code, output } = await runDriver(["--version"]);
    expect(output).toMatch(/^openshell-driver-podman \d+\.\d+\.\d+\S*\n$/);
    expect(code).toBe(0);
  });
});

describe(`${SUBJECT}: capabilities and listeners`, () => {
  test("it says who it is, and that the gateway manages the lifecycle", async () => {
    const capabilities = await unary(driver.client, driver.client.GetCapabilities, {}, options);
    expect(capabilities).toMatchObject({
      driver_name: "podman",
      default_image: SANDBOX_IMAGE,
      gateway_manages_lifecycle: true,
    });
    expect(capabilities.driver_version).not.toBe("");
  });

  test("a rootful engine needs the gateway on the bridge's address", async () => {
    const { requirements } = await unary(
      driver.client,
      driver.client.GetGatewayListenerRequirements,
      {},
      options,
    );
    expect(requirements).toMatchObject([
      {
        reason: `Podman network '${NETWORK}' host gateway`,
        exact_bind_address: `${await bridgeAddress()}:17999`,
      },
    ]);
  });

  test("an endpoint elsewhere needs no listener", async () => {
    await using own = await startDriver({ "grpc-endpoint": "https://gateway.example:443" });
    const { requirements } = await unary(own.client, own.client.GetGatewayListenerRequirements, {}, options);
    expect(requirements).toEqual([]);
  });

  test("an endpoint on this host with another port is refused", async () => {
    await using own = await startDriver({ "grpc-endpoint": "http://host.containers.internal:1" });
    const { client } = own;
    expect(await outcome(unary(client, client.GetGatewayListenerRequirements, {}, options))).toBe(
      "FAILED_PRECONDITION: Podman local callback endpoint 'http://host.containers.internal:1' uses port 1, but the " +
        "gateway primary listener uses port 17999; configure grpc_endpoint with the gateway primary listener port",
    );
  });

  test("a rootless engine needs the default route's interface, and pasta", async () => {
    using tap = new Tap();
    const rootless = (rootlessNetworkCmd: string): void => {
      tap.answer = (_, path) =>
        path.endsWith("/info")
          ? Response.json({ host: { cgroupVersion: "v2", rootlessNetworkCmd, security: { rootless: true } } })
          : null;
    };
    rootless("pasta");
    await using withPasta = await startDriver({ "podman-socket": tap.socket });
    rootless("slirp4netns");
    await using without = await startDriver({ "podman-socket": tap.socket });
    const ask = ({ client }: Driver) => unary(client, client.GetGatewayListenerRequirements, {}, options);
    expect((await ask(withPasta)).requirements).toMatchObject([{ selector: "default_route_interface" }]);
    expect(await outcome(ask(without))).toStartWith(
      "FAILED_PRECONDITION: Podman rootless network helper 'slirp4netns'",
    );
  });
});

describe(`${SUBJECT}: what it refuses`, () => {
  test("requests without their subject", async () => {
    expect(await outcome(call.create(null))).toBe("INVALID_ARGUMENT: sandbox is required");
    expect(await outcome(call.validate(null))).toBe("INVALID_ARGUMENT: sandbox is required");
    for (const method of [call.get, call.stop, call.start, call.delete]) {
      expect(await outcome(method(""))).toBe("INVALID_ARGUMENT: sandbox_id is required");
    }
    expect(await outcome(call.create(sandbox({ name: "" })))).toBe(
      "FAILED_PRECONDITION: sandbox name is required",
    );
    expect(await outcome(call.create(sandbox({ id: "" })))).toBe(
      "FAILED_PRECONDITION: sandbox id is required",
    );
    expect(await outcome(call.create(sandbox({ name: "a b" })))).toStartWith(
      "FAILED_PRECONDITION: invalid input: name contains invalid characters",
    );
  });

  test("unknown sandboxes are NOT_FOUND, and to delete one is no error", async () => {
    for (const method of [call.get, call.stop, call.start]) {
      expect(await outcome(method("nobody"))).toBe("NOT_FOUND: sandbox not found");
    }
    expect(await call.delete("nobody")).toBe(false);
  });

  const refused: [string, Record<string, unknown>, string][] = [
    [
      "an unknown field",
      { colour: "red" },
      "INVALID_ARGUMENT: invalid podman driver_config: unknown field `colour`",
    ],
    [
      "an unknown mount field",
      { mounts: [{ type: "tmpfs", target: "/x", source: "y" }] },
      "INVALID_ARGUMENT: invalid podman driver_config: unknown field `source`",
    ],
    [
      "an unknown mount type",
      { mounts: [{ type: "nfs" }] },
      "INVALID_ARGUMENT: invalid podman driver_config: unknown variant `nfs`",
    ],
    [
      "an empty device list",
      { cdi_devices: [] },
      "INVALID_ARGUMENT: invalid podman driver_config: must be a non-empty list of strings",
    ],
    [
      "devices without a GPU request",
      { cdi_devices: ["nvidia.com/gpu=0"] },
      "INVALID_ARGUMENT: driver_config.cdi_devices requires",
    ],
    [
      "a bind mount that the operator has not enabled",
      { mounts: [{ type: "bind", source: "/etc", target: "/x" }] },
      "FAILED_PRECONDITION: podman bind mounts require enable_bind_mounts = true",
    ],
    [
      "a volume that does not exist",
      { mounts: [{ type: "volume", source: "nope", target: "/x" }] },
      "FAILED_PRECONDITION: podman volume 'nope' does not exist",
    ],
    [
      "a subpath",
      { mounts: [{ type: "image", source: "i", target: "/x", subpath: "a" }] },
      "FAILED_PRECONDITION: podman image mounts do not support subpath",
    ],
    [
      "a target in OpenShell's own paths",
      { mounts: [{ type: "tmpfs", target: "/etc/openshell/auth" }] },
      "FAILED_PRECONDITION: mount target '/etc/openshell/auth' conflicts with reserved OpenShell path '/etc/openshell'",
    ],
    [
      "a target that is not normal",
      { mounts: [{ type: "tmpfs", target: "/a/../b" }] },
      "FAILED_PRECONDITION: mount target must be normalized",
    ],
    [
      "two mounts in one place",
      {
        mounts: [
          { type: "tmpfs", target: "/x" },
          { type: "tmpfs", target: "/x/" },
        ],
      },
      "FAILED_PRECONDITION: duplicate podman driver_config mount target '/x'",
    ],
    [
      "a negative size",
      { mounts: [{ type: "tmpfs", target: "/x", size_bytes: -1 }] },
      "FAILED_PRECONDITION: tmpfs size_bytes must be positive",
    ],
  ];
  test.each(refused)("driver_config with %s, in Validate and Create alike", async (_, config, expected) => {
    const asked = sandbox({ spec: { template: { driver_config: struct(config) } } });
    expect(await outcome(call.validate(asked))).toStartWith(expected);
    expect(await outcome(call.create(asked))).toStartWith(expected);
    expect(await remains(asked.id)).toEqual([]);
  });

  test("a GPU request where there is no GPU", async () => {
    const asked = (count: number) => sandbox({ spec: { resource_requirements: { gpu: { count } } } });
    expect(await outcome(call.validate(asked(0)))).toBe("INVALID_ARGUMENT: gpu count must be greater than 0");
    if (!existsSync("/dev/nvidia0")) {
      expect(await outcome(call.validate(asked(1)))).toBe(
        "FAILED_PRECONDITION: no NVIDIA CDI GPU devices were discovered",
      );
    }
  });

  test.each([
    ["cpu_limit", "two"],
    ["cpu_limit", "0"],
    ["memory_limit", "4 GB"],
    ["memory_request", "-1"],
  ])("%s of %j", async (field, quantity) => {
    const asked = sandbox({ spec: { template: { resources: { [field]: quantity } } } });
    const known = FIRST_PARTY ? "OK" : `INVALID_ARGUMENT: invalid ${field} '${quantity}'`;
    expect(await outcome(call.validate(asked))).toStartWith(known);
  });

  test("no image", async () => {
    await using own = await startDriver({ "sandbox-image": "" });
    expect(await outcome(call.create(sandbox(), own))).toStartWith(
      "FAILED_PRECONDITION: no sandbox image configured",
    );
  });

  test("an image that cannot be had", async () => {
    await using own = await startDriver({ "sandbox-image-pull-policy": "never" });
    const asked = sandbox({ spec: { template: { image: "localhost/nobody/has:this" } } });
    expect(await outcome(call.create(asked, own))).toStartWith(
      "INTERNAL: podman API error (500): image pull failed: ",
    );
    expect(await remains(asked.id)).toEqual([]);
  });
});

describe(`${SUBJECT}: the container`, () => {
  test("is what the supervisor and the gateway expect, to the last name", async () => {
    using tap = new Tap();
    await using own = await startDriver({ "podman-socket": tap.socket });
    const asked = sandbox({
      workspace: "team",
      spec: {
        sandbox_token: "header.payload.signature",
        command: ["sh", "-c", "echo 'a b' \"$HOME\"", ""],
        environment: { FOO: "spec", OPENSHELL_SANDBOX_ID: "forged", OPENSHELL_SANDBOX_TOKEN: "forged" },
        template: {
          environment: { FOO: "template", BAR: "template" },
          labels: { tl: "1", "openshell.ai/sandbox-name": "forged" },
          resources: { cpu_limit: "500m", memory_limit: "256Mi" },
        },
      },
    });
    await call.create(asked, own);
    const body =
      tap.calls.find(({ method, path }) => method === "POST" && path.endsWith("/containers/create"))?.body ??
      "";
    const { text } = await engine("GET", `/images/${SANDBOX_IMAGE}/json`);
    // Podman before 4.7 does not know the word "host-gateway".
    const host = FIRST_PARTY ? "host-gateway" : await bridgeAddress();
    const { id, name } = asked;
    const user = {
      BAR: "template",
      FOO: "spec",
      OPENSHELL_SANDBOX_ID: "forged",
      OPENSHELL_SANDBOX_TOKEN: "forged",
    };
    expect(JSON.parse(body)).toEqual({
      name: `openshell-team--${name}-${id}`,
      image: (JSON.parse(text) as { Id: string }).Id,
      image_pull_policy: "never",
      labels: {
        tl: "1",
        "openshell.ai/sandbox-id": id,
        "openshell.ai/sandbox-name": name,
        "openshell.ai/sandbox-namespace": "",
        "openshell.ai/sandbox-workspace": "team",
        "openshell.managed": "true",
      },
      env: {
        BAR: "template",
        FOO: "spec",
        OPENSHELL_CONTAINER_IMAGE: SANDBOX_IMAGE,
        OPENSHELL_ENDPOINT: "http://host.containers.internal:17999",
        OPENSHELL_MAIN_PROCESS_SPEC: JSON.stringify({ version: 1, command: asked.spec?.command, tty: false }),
        OPENSHELL_NETWORK_RUNTIME_CAPABILITIES: "policy-dns-transparent-tcp",
        OPENSHELL_OCI_IMAGE_USER: "",
        OPENSHELL_SANDBOX: name,
        OPENSHELL_SANDBOX_GID: "",
        OPENSHELL_SANDBOX_ID: id,
        OPENSHELL_SANDBOX_TOKEN_FILE: "/etc/openshell/auth/sandbox.jwt",
        OPENSHELL_SANDBOX_UID: "",
        OPENSHELL_SSH_SOCKET_PATH: "/run/openshell/ssh.sock",
        OPENSHELL_TELEMETRY_ENABLED: "false",
        OPENSHELL_USER_ENVIRONMENT: JSON.stringify(user),
      },
      hostname: `sandbox-${name}`,
      user: "0:0",
      entrypoint: ["/opt/openshell/bin/openshell-sandbox"],
      command: ["--workdir", "/sandbox"],
      stop_timeout: 1,
      volumes: [{ name: `openshell-sandbox-${id}-workspace`, dest: "/sandbox", options: ["rw"] }],
      image_volumes: [{ source: SUPERVISOR_IMAGE, destination: "/opt/openshell/bin", rw: false }],
      mounts: [
        { type: "tmpfs", source: "tmpfs", destination: "/run/netns", options: ["rw", "nosuid", "nodev"] },
      ],
      secrets: [
        {
          source: `openshell-token-${id}`,
          target: "/etc/openshell/auth/sandbox.jwt",
          uid: 0,
          gid: 0,
          mode: 0o400,
        },
      ],
      secret_env: {},
      netns: { nsmode: "bridge" },
      networks: { [NETWORK]: {} },
      hostadd: [`host.containers.internal:${host}`, `host.openshell.internal:${host}`],
      dns_search: [],
      dns_option: [],
      portmappings: [{ host_port: 0, container_port: 2222, protocol: "tcp" }],
      cap_add: ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYSLOG", "DAC_READ_SEARCH", "SETPCAP"],
      cap_drop: ["DAC_OVERRIDE", "FSETID", "KILL", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SYS_CHROOT"],
      no_new_privileges: true,
      seccomp_profile_path: "unconfined",
      resource_limits: {
        cpu: { quota: 50_000, period: 100_000 },
        memory: { limit: 2 ** 28 },
        PidsLimit: 2048,
      },
      healthconfig: {
        test: [
          "CMD-SHELL",
          "test -e /var/run/openshell-ssh-ready || test -S /run/openshell/ssh.sock || ss -tlnp | grep -q :2222",
        ],
        Interval: 10e9,
        Timeout: 2e9,
        Retries: 10,
        StartPeriod: 5e9,
      },
    });
    await call.delete(id);
  });

  test("never shows the token, but in its file", async () => {
    const asked = sandbox({ spec: { sandbox_token: "top.secret.token", template: {} } });
    await call.create(asked);
    const shown = [
      (await engine("GET", `/containers/${containerName(asked)}/json`)).text,
      (await engine("GET", "/containers/json?all=true")).text,
      (await engine("GET", "/secrets/json")).text,
      JSON.stringify(await call.list()),
    ];
    expect(shown.filter((text) => text.includes("top.secret.token"))).toEqual([]);
    await call.delete(asked.id);
  });

  test("carries the mounts of driver_config", async () => {
    using tap = new Tap();
    await using own = await startDriver({ "podman-socket": tap.socket });
    const volume = `driver-test-${process.pid}-data`;
    await engine("POST", "/volumes/create", { Name: volume });
    const asked = sandbox({
      spec: {
        template: {
          driver_config: struct({
            mounts: [
              { type: "volume", source: volume, target: "/data", read_only: false },
              { type: "tmpfs", target: "/scratch", size_bytes: 1048576, mode: 0o1777, options: ["noexec"] },
              { type: "image", source: SUPERVISOR_IMAGE, target: "/tools" },
            ],
          }),
        },
      },
    });
    expect(await outcome(call.create(asked, own))).toBe("OK");
    const body = JSON.parse(
      tap.calls.find(({ path }) => path.endsWith("/containers/create"))?.body ?? "{}",
    ) as Record<string, object[]>;
    expect(body.volumes?.[1]).toEqual({ name: volume, dest: "/data", options: ["rw"] });
    expect(body.image_volumes?.[1]).toEqual({ source: SUPERVISOR_IMAGE, destination: "/tools", rw: false });
    expect(body.mounts?.[1]).toEqual({
      type: "tmpfs",
      source: "tmpfs",
      destination: "/scratch",
      options: ["noexec", "size=1048576", "mode=1777"],
    });
    expect(await call.delete(asked.id)).toBe(true);
    expect((await engine("DELETE", `/volumes/${volume}`)).status).toBe(204);
  });
});

describe(`${SUBJECT}: lifecycle`, () => {
  test("create, get, list, stop, start, delete, and nothing is left", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    expect(await outcome(call.create(asked))).toBe("OK");
    const got = await call.get(asked.id);
    expect(got).toMatchObject({
      id: asked.id,
      name: asked.name,
      workspace: "default",
      namespace: "",
      spec: null,
    });
    expect(got?.status).toMatchObject({ sandbox_name: containerName(asked), deleting: false });
    expect(got?.status?.instance_id).toHaveLength(12);
    expect(await call.list()).toMatchObject([{ id: asked.id }]);
    await watcher.sees(asked.id, "HealthCheckStarting");
    expect(await remains(asked.id)).toEqual([
      `container ${containerName(asked).replace(asked.id, "ID")}`,
      "volume openshell-sandbox-ID-workspace",
      "secret openshell-token-ID",
    ]);

    expect(await outcome(call.stop(asked.id))).toBe("OK");
    expect((await inspect(containerName(asked))).State.Status).toBe("exited");
    // The first-party driver withholds the end of a run that StopSandbox caused, when its answer is faster.
    if (!FIRST_PARTY) await watcher.sees(asked.id, "ContainerExited");
    expect((await call.get(asked.id))?.status?.conditions).toMatchObject([
      { type: "Ready", status: "False", reason: "ContainerExited" },
    ]);
    expect(await outcome(call.start(asked.id))).toBe("OK");
    expect((await inspect(containerName(asked))).State.Status).toBe("running");
    expect(await call.delete(asked.id)).toBe(true);
    await watcher.sees(asked.id, "Deleted");
    expect(await outcome(call.get(asked.id))).toBe("NOT_FOUND: sandbox not found");
    expect(await call.list()).toEqual([]);
    expect(await call.delete(asked.id)).toBe(false);
    expect(await remains(asked.id)).toEqual([]);
  });

  test("a stop keeps the workspace", async () => {
    const asked = sandbox();
    await call.create(asked);
    const folder = await workspace(asked.id);
    await eventually("the first run", () => existsSync(join(folder, "runs")));
    writeFileSync(join(folder, "kept"), "content");
    await call.stop(asked.id);
    await call.start(asked.id);
    await eventually("the second run", () => readFileSync(join(folder, "runs"), "utf8") === "run\nrun\n");
    expect(readFileSync(join(folder, "kept"), "utf8")).toBe("content");
    await call.delete(asked.id);
  });

  test("stop and start are idempotent, also at the same time", async () => {
    const asked = sandbox();
    await call.create(asked);
    const before = await inspect(containerName(asked));
    expect(await outcome(call.start(asked.id))).toBe("OK");
    expect((await inspect(containerName(asked))).State.Pid).toBe(before.State.Pid);
    expect(await Promise.all([outcome(call.stop(asked.id)), outcome(call.stop(asked.id))])).toEqual([
      "OK",
      "OK",
    ]);
    expect(await outcome(call.stop(asked.id))).toBe("OK");
    await call.delete(asked.id);
  });

  test("of several deletes at once exactly one deletes", async () => {
    const asked = sandbox();
    await call.create(asked);
    const results = await Promise.all(
      [1, 2, 3].map(() => call.delete(asked.id).catch((error: ServiceError) => codeName(error.code))),
    );
    if (FIRST_PARTY) expect(results).toContain(true);
    else expect(results.toSorted()).toEqual([false, false, true]);
    expect(await remains(asked.id)).toEqual([]);
  });

  test("a second create of the same sandbox is ALREADY_EXISTS and does no harm", async () => {
    const asked = sandbox();
    await call.create(asked);
    const before = await inspect(containerName(asked));
    const expected = FIRST_PARTY
      ? "INTERNAL: podman API error (500): volume with name"
      : "ALREADY_EXISTS: sandbox already exists";
    expect(await outcome(call.create(asked))).toStartWith(expected);
    expect((await inspect(containerName(asked))).State).toMatchObject({
      Status: "running",
      Pid: before.State.Pid,
    });
    expect(await remains(asked.id)).toHaveLength(3);
    expect(await call.delete(asked.id)).toBe(true);
    expect(await remains(asked.id)).toEqual([]);
  });

  test("one name in two workspaces is two sandboxes", async () => {
    const [one, two] = [sandbox({ name: "twin", workspace: "a" }), sandbox({ name: "twin", workspace: "b" })];
    await Promise.all([call.create(one), call.create(two)]);
    expect((await call.list()).map(({ workspace }) => workspace).toSorted()).toEqual(["a", "b"]);
    await call.delete(one.id);
    expect((await call.list()).map(({ workspace }) => workspace)).toEqual(["b"]);
    await call.delete(two.id);
  });

  test("sixteen sandboxes at once", async () => {
    const many = Array.from({ length: 16 }, () => sandbox());
    expect(await Promise.all(many.map((one) => outcome(call.create(one))))).toEqual(many.map(() => "OK"));
    expect(await Promise.all(many.map(({ id }) => outcome(call.stop(id))))).toEqual(many.map(() => "OK"));
    expect((await call.list()).map(({ status }) => status?.conditions[0]?.reason)).toEqual(
      many.map(() => "ContainerExited"),
    );
    expect(await Promise.all(many.map(({ id }) => call.delete(id)))).toEqual(many.map(() => true));
  });

  test("a stop of a paused sandbox stops it", async () => {
    const asked = sandbox();
    await call.create(asked);
    expect((await engine("POST", `/containers/${containerName(asked)}/pause`)).status).toBe(204);
    expect(await outcome(call.stop(asked.id))).toBe("OK");
    expect((await inspect(containerName(asked))).State.Status).toBe(FIRST_PARTY ? "paused" : "exited");
    await call.delete(asked.id);
  });

  test("after a start the end of the run before is not reported any more", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    await call.create(asked);
    for (let round = 0; round < 5; round++) {
      await call.stop(asked.id);
      await call.start(asked.id);
      const seen = watcher.events.length;
      await watcher.sees(asked.id, "HealthCheckStarting");
      await call.get(asked.id);
      const late = watcher.events
        .slice(seen)
        .map(({ sandbox: event }) => event?.sandbox?.status?.conditions[0]?.reason);
      expect(late).not.toContain("ContainerExited");
    }
    await call.delete(asked.id);
  });

  test("a failed create leaves nothing, whatever failed", async () => {
    using tap = new Tap();
    await using own = await startDriver({ "podman-socket": tap.socket });
    for (const step of [
      /\/volumes\/create$/,
      /\/secrets\/create$/,
      /\/containers\/create$/,
      /\/start$/,
      /\/images\/pull$/,
    ]) {
      tap.answer = (method, path) =>
        method === "POST" && step.test(path) ? engineFailure("out of luck") : null;
      const asked = sandbox();
      expect(await outcome(call.create(asked, own))).toBe("INTERNAL: podman API error (500): out of luck");
      tap.answer = () => null;
      expect(await remains(asked.id)).toEqual([]);
      expect(await outcome(call.get(asked.id, own))).toBe("NOT_FOUND: sandbox not found");
    }
  });

  test.skipIf(FIRST_PARTY !== "")(
    "a start that met another one at the firewall is tried once more",
    async () => {
      using tap = new Tap();
      await using own = await startDriver({ "podman-socket": tap.socket });
      const race = "netavark: code: 1, msg: iptables: Chain already exists.";
      let left = 1;
      tap.answer = (_, path) => (path.endsWith("/start") && left-- > 0 ? engineFailure(race) : null);
      const asked = sandbox();
      expect(await outcome(call.create(asked, own))).toBe("OK");
      left = 2;
      expect(await outcome(call.create(sandbox(), own))).toBe(`INTERNAL: podman API error (500): ${race}`);
      expect(await call.delete(asked.id, own)).toBe(true);
    },
  );

  test.skipIf(FIRST_PARTY !== "")("a delete ends a create that waits for its image", async () => {
    using tap = new Tap();
    await using own = await startDriver({ "podman-socket": tap.socket });
    using watcher = new Watcher(own);
    const never = new Promise<Response>(() => {});
    tap.answer = (_, path) => (path.endsWith("/images/pull") ? never : null);
    const asked = sandbox();
    const created = outcome(call.create(asked, own));
    await eventually("a pull", () => tap.calls.some(({ path }) => path.endsWith("/images/pull")));
    expect(await call.delete(asked.id, own)).toBe(true);
    expect(await created).toBe("ABORTED: sandbox creation was cancelled");
    await watcher.sees(asked.id, "Deleted");
    expect(await remains(asked.id)).toEqual([]);
  });

  test("of two creates of one sandbox at the same time one is made", async () => {
    const asked = sandbox();
    const outcomes = (
      await Promise.all([outcome(call.create(asked)), outcome(call.create(asked))])
    ).toSorted();
    const [loser, winner] = outcomes as [string, string];
    expect(winner).toBe("OK");
    if (!FIRST_PARTY) expect(loser).toBe("ALREADY_EXISTS: sandbox already exists");
    expect(await remains(asked.id)).toHaveLength(3);
    expect(await call.delete(asked.id)).toBe(true);
  });

  test("what a sandbox was denied to be does not disturb the next one with its id", async () => {
    using tap = new Tap();
    await using own = await startDriver({ "podman-socket": tap.socket });
    tap.answer = (method, path) =>
      method === "POST" && path.endsWith("/start") ? engineFailure("no") : null;
    const asked = sandbox();
    expect(await outcome(call.create(asked, own))).not.toBe("OK");
    tap.answer = () => null;
    expect(await outcome(call.create(asked, own))).toBe("OK");
    expect(await remains(asked.id)).toHaveLength(3);
    expect(await call.delete(asked.id, own)).toBe(true);
  });
});

describe(`${SUBJECT}: watch`, () => {
  test("a sandbox whose process ends is reported with its exit code", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    await call.create(asked);
    const folder = await workspace(asked.id);
    await eventually("the first run", () => existsSync(join(folder, "runs")));
    await call.stop(asked.id);
    writeFileSync(join(folder, "quit"), "");
    await call.start(asked.id);
    const messages = (): (string | undefined)[] =>
      watcher.events.map(({ sandbox: event }) => event?.sandbox?.status?.conditions[0]?.message);
    await eventually("the exit", () => messages().includes("Container exited with code 7"));
    await call.delete(asked.id);
  });

  test("a new watcher is told of every sandbox, running and stopped, and of what follows", async () => {
    const [running, stopped] = [sandbox(), sandbox()];
    await Promise.all([call.create(running), call.create(stopped)]);
    await call.stop(stopped.id);
    using one = new Watcher();
    using two = new Watcher();
    for (const watcher of [one, two]) {
      await watcher.sees(running.id, "HealthCheckStarting");
      await watcher.sees(stopped.id, "ContainerExited");
    }
    one[Symbol.dispose]();
    await call.delete(running.id);
    await two.sees(running.id, "Deleted");
    expect(await call.get(stopped.id)).toMatchObject({ id: stopped.id });
    await call.delete(stopped.id);
  });

  test("a container that is removed behind its back is gone, with its volume and secret", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    await call.create(asked);
    await watcher.sees(asked.id, "HealthCheckStarting");
    await engine("DELETE", `/containers/${containerName(asked)}?force=true&timeout=0`);
    await watcher.sees(asked.id, "Deleted");
    expect(await outcome(call.get(asked.id))).toBe("NOT_FOUND: sandbox not found");
    if (FIRST_PARTY) {
      expect(await remains(asked.id)).toEqual([
        "volume openshell-sandbox-ID-workspace",
        "secret openshell-token-ID",
      ]);
      await call.delete(asked.id);
    }
    await eventually("nothing left", async () => (await remains(asked.id)).length === 0);
  });

  test.skipIf(REAL_ENGINE !== "")("health is what the engine's check says", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    await call.create(asked);
    const name = containerName(asked);
    const reports = () => watcher.story(asked.id).length;
    await eventually("the first report", () => reports() > 0);
    const before = reports();
    const { text } = await engine("GET", `/containers/${name}/healthcheck`);
    // The check looks for files of the host, which are not there, and for port 2222, which somebody may listen on.
    const { Status } = JSON.parse(text) as { Status: "starting" | "healthy" };
    const wanted = { starting: "HealthCheckStarting", healthy: "HealthCheckPassed" }[Status];
    await eventually("another report", () => reports() > before && watcher.story(asked.id).at(-1) === wanted);
    await call.delete(asked.id);
  });

  test.skipIf(REAL_ENGINE !== "")(
    "there is no limit to the containers that a watch begins with",
    async () => {
      const labels = (index: number): Record<string, string> => ({
        "openshell.managed": "true",
        "openshell.ai/sandbox-id": `many-${index}`,
        "openshell.ai/sandbox-name": `m${index}`,
        "openshell.ai/sandbox-workspace": "default",
      });
      const count = 300;
      const network = `${NETWORK}-many`;
      await using own = await startDriver({ "network-name": network });
      await Promise.all(
        Array.from({ length: count }, (_, index) =>
          engine("POST", "/containers/create", {
            name: `many-${process.pid}-${index}`,
            image: SANDBOX_IMAGE,
            command: ["sleep", "1"],
            labels: labels(index),
            netns: { nsmode: "bridge" },
            networks: { [network]: {} },
          }),
        ),
      );
      using watcher = new Watcher(own);
      if (FIRST_PARTY) {
        await Bun.sleep(1_000);
        expect(watcher.events).toEqual([]);
      } else {
        const seen = (): number =>
          new Set(watcher.events.map(({ sandbox: event }) => event?.sandbox?.id)).size;
        await settles(seen, count);
        expect(await call.list(own)).toHaveLength(count);
        expect(await call.list()).toEqual([]);
      }
      await engine("DELETE", `/networks/${network}?force=true`);
    },
  );

  test.skipIf(REAL_ENGINE !== "")(
    "when the engine dies watches end, nothing is NOT_FOUND, and afterwards all is as before",
    async () => {
      const asked = sandbox();
      await call.create(asked);
      const { Pid } = (await inspect(containerName(asked))).State;
      using watcher = new Watcher();
      await watcher.sees(asked.id, "HealthCheckStarting");
      await killEngine();
      await eventually("the watch's end", () => watcher.end);
      expect((watcher.end as ServiceError).code).toBe(Code.INTERNAL);
      expect(await outcome(call.get(asked.id))).toStartWith("INTERNAL: connection error");
      expect(await outcome(call.list())).toStartWith("INTERNAL: connection error");
      await bootEngine();
      using again = new Watcher();
      await again.sees(asked.id, "HealthCheckStarting");
      expect((await inspect(containerName(asked))).State.Pid).toBe(Pid);
      expect(await call.delete(asked.id)).toBe(true);
      await again.sees(asked.id, "Deleted");
    },
  );
});

describe(`${SUBJECT}: end`, () => {
  test("SIGTERM ends it although a gateway watches and does not hang up, and its socket is gone", async () => {
    await using own = await startDriver();
    using watch = await FrameCall.watch(own.socket);
    own.process.kill("SIGTERM");
    const code = await Promise.race([
      own.process.exited,
      Bun.sleep(1_500).then(() => "still there" as const),
    ]);
    if (FIRST_PARTY) return expect(code).toBe("still there");
    expect(code).toBe(0);
    expect(existsSync(own.socket)).toBe(false);
    await eventually("the end of the connection", () => watch.closed);
  });

  test.skipIf(FIRST_PARTY !== "")("SIGTERM ends the watches with UNAVAILABLE", async () => {
    await using own = await startDriver();
    using watcher = new Watcher(own);
    const asked = sandbox();
    await call.create(asked);
    await watcher.sees(asked.id, "HealthCheckStarting");
    own.process.kill("SIGTERM");
    await eventually("the watch's end", () => watcher.end);
    expect((watcher.end as ServiceError).code).toBe(Code.UNAVAILABLE);
    await call.delete(asked.id);
  });

  test("SIGTERM lets a call that is under way end", async () => {
    using tap = new Tap();
    await using own = await startDriver({ "podman-socket": tap.socket });
    const asked = sandbox();
    await call.create(asked, own);
    tap.answer = async (_, path) => (path.endsWith("/stop") ? (await Bun.sleep(300), null) : null);
    const { requestSerialize } = computeDriver().ComputeDriver.service.StopSandbox;
    using stop = FrameCall.ask(own.socket, "StopSandbox", requestSerialize({ sandbox_id: asked.id }));
    await eventually("the stop", () => tap.calls.some(({ path }) => path.endsWith("/stop")));
    own.process.kill("SIGTERM");
    expect(await own.process.exited).toBe(0);
    expect(stop.closed).toBe(true);
    expect((await inspect(containerName(asked))).State.Status).toBe("exited");
    await call.delete(asked.id);
  });

  test("a driver whose path was taken over leaves the other's socket", async () => {
    await using first = await startDriver();
    await using second = await startDriver({ "bind-socket": first.socket });
    first.process.kill("SIGTERM");
    await first.process.exited;
    expect(existsSync(first.socket)).toBe(!FIRST_PARTY);
    expect(second.process.exitCode).toBeNull();
  });

  test("a restarted driver knows its sandboxes", async () => {
    const asked = sandbox();
    {
      await using first = await startDriver();
      await call.create(asked, first);
    }
    await using second = await startDriver();
    expect(await call.list(second)).toMatchObject([{ id: asked.id }]);
    expect(await outcome(call.stop(asked.id, second))).toBe("OK");
    expect(await outcome(call.start(asked.id, second))).toBe("OK");
    expect(await call.delete(asked.id, second)).toBe(true);
  });
});
