// SPDX-License-Identifier: Apache-2.0

/**
 * What is particular to a Podman compute driver: its flags, its words, the container that it makes. The same assertions
 * hold for fakes/driver.ts and for the binary that OPENSHELL_DRIVER_BIN names; where the first-party driver is known to be
 * wrong, the test says what it does instead. What every driver must do, the rules of scenarios/driver-contract ask of both.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";

import { join } from "node:path";
import { status as Code, type ServiceError } from "@grpc/grpc-js";
import { FrameCall } from "../harness/conformance/frame-call.ts";
import { loadChecks } from "../harness/conformance/load.ts";
import { until } from "../harness/base/waiting.ts";
import { computeDriver, outcomeOf, unary } from "../proto/contract.ts";
import { settles } from "./engine/lab.ts";
import {
  bridgeAddress,
  call,
  closeLab,
  containerName,
  Driver,
  driver,
  engine,
  engineFailure,
  FIRST_PARTY,
  flagsFor,
  inspect,
  NETWORK,
  openLab,
  options,
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

/** What is not tested here, because these rules ask it. */
const ASKED_BY_RULES: Record<string, string[]> = {
  "its socket is private, replaces a dead driver's, and spares files, links and its successor's socket": [
    ...["DC-3", "DC-5", "DC-6", "DC-7", "DC-191"],
  ],
  "a sandbox is made once, under its own name, and its token stays in its file": [
    ...["DC-27", "DC-30", "DC-31", "DC-37", "DC-42", "DC-54", "DC-140", "DC-160", "DC-175"],
  ],
  "many calls at once are answered": ["DC-10", "DC-63", "DC-159"],
  "stop and start keep the workspace, and may be repeated": [
    ...["DC-57", "DC-58", "DC-60", "DC-61", "DC-62", "DC-64"],
  ],
  "delete leaves nothing, and deletes once": ["DC-71", "DC-72", "DC-73", "DC-75", "DC-79", "DC-83", "DC-154"],
  "a watch begins with everything, and tells everybody": ["DC-80", "DC-85"],
  "an end of the engine or of the driver loses no sandbox": ["DC-86", "DC-109", "DC-111", "DC-112"],
};

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

test("every rule that this file relies on exists", async () => {
  const ids = new Set((await loadChecks()).map(({ id }) => id));
  for (const [what, rules] of Object.entries(ASKED_BY_RULES))
    expect([what, rules.filter((id) => !ids.has(id))]).toEqual([what, []]);
});

describe(`${SUBJECT}: start`, () => {
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
    expect(await outcomeOf(unary(client, client.GetGatewayListenerRequirements, {}, options))).toBe(
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
    expect(await outcomeOf(ask(without))).toStartWith(
      "FAILED_PRECONDITION: Podman rootless network helper 'slirp4netns'",
    );
  });
});

describe(`${SUBJECT}: what it refuses`, () => {
  test("requests without their subject", async () => {
    expect(await outcomeOf(call.create(null))).toBe("INVALID_ARGUMENT: sandbox is required");
    expect(await outcomeOf(call.validate(null))).toBe("INVALID_ARGUMENT: sandbox is required");
    for (const method of [call.get, call.stop, call.start, call.delete]) {
      expect(await outcomeOf(method(""))).toBe("INVALID_ARGUMENT: sandbox_id is required");
    }
    expect(await outcomeOf(call.create(sandbox({ name: "" })))).toBe(
      "FAILED_PRECONDITION: sandbox name is required",
    );
    expect(await outcomeOf(call.create(sandbox({ id: "" })))).toBe(
      "FAILED_PRECONDITION: sandbox id is required",
    );
    expect(await outcomeOf(call.create(sandbox({ name: "a b" })))).toStartWith(
      "FAILED_PRECONDITION: invalid input: name contains invalid characters",
    );
  });

  test("unknown sandboxes are NOT_FOUND, and to delete one is no error", async () => {
    for (const method of [call.get, call.stop, call.start]) {
      expect(await outcomeOf(method("nobody"))).toBe("NOT_FOUND: sandbox not found");
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
    expect(await outcomeOf(call.validate(asked))).toStartWith(expected);
    expect(await outcomeOf(call.create(asked))).toStartWith(expected);
    expect(await remains(asked.id)).toEqual([]);
  });

  test("a GPU request where there is no GPU", async () => {
    const asked = (count: number) => sandbox({ spec: { resource_requirements: { gpu: { count } } } });
    expect(await outcomeOf(call.validate(asked(0)))).toBe(
      "INVALID_ARGUMENT: gpu count must be greater than 0",
    );
    if (!existsSync("/dev/nvidia0")) {
      expect(await outcomeOf(call.validate(asked(1)))).toBe(
        "FAILED_PRECONDITION: no NVIDIA CDI GPU devices were discovered",
      );
    }
  });

  test("no image", async () => {
    await using own = await startDriver({ "sandbox-image": "" });
    expect(await outcomeOf(call.create(sandbox(), own))).toStartWith(
      "FAILED_PRECONDITION: no sandbox image configured",
    );
  });

  test("an image that cannot be had", async () => {
    await using own = await startDriver({ "sandbox-image-pull-policy": "never" });
    const asked = sandbox({ spec: { template: { image: "localhost/nobody/has:this" } } });
    expect(await outcomeOf(call.create(asked, own))).toStartWith(
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
    expect(await outcomeOf(call.create(asked, own))).toBe("OK");
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
  test("a stop of a paused sandbox stops it", async () => {
    const asked = sandbox();
    await call.create(asked);
    expect((await engine("POST", `/containers/${containerName(asked)}/pause`)).status).toBe(204);
    expect(await outcomeOf(call.stop(asked.id))).toBe("OK");
    expect((await inspect(containerName(asked))).State.Status).toBe(FIRST_PARTY ? "paused" : "exited");
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
      expect(await outcomeOf(call.create(asked, own))).toBe("INTERNAL: podman API error (500): out of luck");
      tap.answer = () => null;
      expect(await remains(asked.id)).toEqual([]);
      expect(await outcomeOf(call.get(asked.id, own))).toBe("NOT_FOUND: sandbox not found");
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
      expect(await outcomeOf(call.create(asked, own))).toBe("OK");
      left = 2;
      expect(await outcomeOf(call.create(sandbox(), own))).toBe(`INTERNAL: podman API error (500): ${race}`);
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
    const created = outcomeOf(call.create(asked, own));
    await until("a pull", () => tap.calls.some(({ path }) => path.endsWith("/images/pull")));
    expect(await call.delete(asked.id, own)).toBe(true);
    expect(await created).toBe("ABORTED: sandbox creation was cancelled");
    await watcher.sees(asked.id, "Deleted");
    expect(await remains(asked.id)).toEqual([]);
  });
});

describe(`${SUBJECT}: watch`, () => {
  test("a sandbox whose process ends is reported with its exit code", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    await call.create(asked);
    const folder = await workspace(asked.id);
    await until("the first run", () => existsSync(join(folder, "runs")));
    await call.stop(asked.id);
    writeFileSync(join(folder, "quit"), "");
    await call.start(asked.id);
    const messages = (): (string | undefined)[] =>
      watcher.events.map(({ sandbox: event }) => event?.sandbox?.status?.conditions[0]?.message);
    await until("the exit", () => messages().includes("Container exited with code 7"));
    await call.delete(asked.id);
  });

  test.skipIf(REAL_ENGINE !== "")("health is what the engine's check says", async () => {
    using watcher = new Watcher();
    const asked = sandbox();
    await call.create(asked);
    const name = containerName(asked);
    const reports = () => watcher.story(asked.id).length;
    await until("the first report", () => reports() > 0);
    const before = reports();
    const { text } = await engine("GET", `/containers/${name}/healthcheck`);
    // The check looks for files of the host, which are not there, and for port 2222, which somebody may listen on.
    const { Status } = JSON.parse(text) as { Status: "starting" | "healthy" };
    const wanted = { starting: "HealthCheckStarting", healthy: "HealthCheckPassed" }[Status];
    await until("another report", () => reports() > before && watcher.story(asked.id).at(-1) === wanted);
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
});

describe(`${SUBJECT}: end`, () => {
  test.skipIf(FIRST_PARTY !== "")("SIGTERM ends the watches with UNAVAILABLE", async () => {
    await using own = await startDriver();
    using watcher = new Watcher(own);
    const asked = sandbox();
    await call.create(asked);
    await watcher.sees(asked.id, "HealthCheckStarting");
    own.process.kill("SIGTERM");
    await until("the watch's end", () => watcher.end);
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
    await until("the stop", () => tap.calls.some(({ path }) => path.endsWith("/stop")));
    own.process.kill("SIGTERM");
    expect(await own.process.exited).toBe(0);
    expect(stop.closed).toBe(true);
    expect((await inspect(containerName(asked))).State.Status).toBe("exited");
    await call.delete(asked.id);
  });
});
