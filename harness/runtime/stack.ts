// SPDX-License-Identifier: Apache-2.0

/** A stack: one gateway with one driver, started and stopped in the order that they need. */
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect as connectSocket, createServer } from "node:net";
import { join } from "node:path";
import { stringify as toToml } from "smol-toml";
import { loadGrpc, unary } from "../../proto/contract.ts";
import { fillIn } from "../base/command.ts";
import type { DriverContext } from "../base/driver-context.ts";
import { HarnessError } from "../base/errors.ts";
import { mustReachLoopback } from "../base/loopback.ts";
import { urlPath } from "../base/machine.ts";
import { readable } from "../base/readable.ts";
import { holdsId, isSandboxId } from "../base/sandbox-id.ts";
import { know } from "../base/secrets.ts";
import { DRIVER_NAME, type Settings } from "../base/settings.ts";
import { mustListen } from "../base/system.ts";
import { eventually, within } from "../base/waiting.ts";
import type { Certificates, Endpoint } from "../client/endpoint.ts";
import { openClient } from "../client/gateway.ts";
import { TRACE_FILE } from "../report/follow.ts";
import { type Belonging, belongings, type Engine, removeBelongings } from "./engine.ts";
import { EngineProxy } from "./faults/engine-proxy.ts";
import { Upstream } from "./faults/relay.ts";
import { Tap } from "./faults/tap.ts";
import { RUN_LABEL } from "./marks.ts";
import type { Parts } from "./places.ts";
import { Child, cleanEnvironment } from "./process.ts";
import type { Run } from "./run.ts";

// Driver launch profiles

/** How one kind of driver is started. A new kind is one more function here. */
type Profile = (command: string[], context: DriverContext) => string[];

const PROFILES = {
  /** openshell-driver-podman, and the fake that takes the same flags. */
  podman: (command, context) => [
    ...command,
    ...["--bind-socket", context.socket],
    ...["--podman-socket", context.podman_socket],
    ...["--gateway-port", String(context.port)],
    ...["--network-name", context.network],
    ...["--sandbox-image", context.sandbox_image],
    ...["--sandbox-image-pull-policy", "missing"],
    ...["--supervisor-image", context.supervisor_image],
    ...["--stop-timeout", context.stop_timeout],
    ...(context.tls_ca
      ? [
          "--podman-tls-ca",
          context.tls_ca,
          "--podman-tls-cert",
          context.tls_cert,
          "--podman-tls-key",
          context.tls_key,
        ]
      : []),
  ],
  /** Any program: OPENSHELL_DRIVER_CMD, its placeholders filled in word by word, without a shell. */
  custom: fillIn,
} satisfies Record<string, Profile>;

const profileOf = (settings: Settings, parts: Parts): Profile =>
  settings.driverCmd && parts.driver.real ? PROFILES.custom : PROFILES.podman;

// Stack

/** A stack that differs from the usual one. All of it can cross the control socket as JSON. */
export interface StackSpec {
  /** Record and steer the calls between gateway and driver; true unless a scenario shows that it changes nothing. */
  tap?: boolean;
  /** Mutual TLS with certificates from `openshell-gateway generate-certs`. */
  tls?: boolean;
  /** What `compute_drivers` names. */
  driverName?: string;
  /** The table of that driver, when it is not its name. */
  tableName?: string;
  /** The content of that table, when it is not the driver's `socket_path`. */
  table?: Record<string, string>;
  /** Laid over `[openshell.gateway]`. */
  gatewayTable?: Record<string, unknown>;
  /** Added to the gateway's command line; `{socket}` stands for the socket that the gateway is to dial. */
  gatewayArgs?: string[];
  /** Added to the gateway's environment, in the same way. */
  gatewayEnv?: Record<string, string>;
  /** Which of the two is started first, or which one alone. */
  order?: "driver-first" | "gateway-first" | "gateway-only" | "driver-only";
  /** A proxy between driver and engine, which can make the engine fail (`RunningStack.engineRules`). */
  engineProxy?: boolean;
  /** Whether a small container keeps the network's bridge alive where the engine makes none without; true. */
  holdBridge?: boolean;
  /** Sandboxes run the probe, which tells what it was given and wants no gateway, in the supervisor's place. */
  probe?: boolean;
  /** How long the gateway may take to answer, in milliseconds. */
  deadlineMs?: number;
}

/** Where things of a running stack are. */
export interface StackInfo extends Endpoint {
  id: number;
  healthEndpoint: string;
  network: string;
  folder: string;
  /** What the gateway dials: the tap's socket, or the driver's own without a tap. */
  gatewaySocket: string;
  driverSocket: string;
  engineSocket: string;
  pids: { keeper: number; gateway: number; driver: number };
  logs: { gateway: string; driver: string };
  config: string;
}

/** What all stacks of one run share: the engine, and the images that are on it. */
export interface Setup {
  run: Run;
  settings: Settings;
  parts: Parts;
  /**
   * The command lines of gateway and driver: the real programs', or those of the compiled fakes. Checks ask a driver so
   * much that it is to compile what is hot.
   */
  commands: Record<"gateway" | "driver" | "checkedDriver", string[]>;
  /** Unset when a custom driver brings its own. */
  engine: Engine | undefined;
  rootless: boolean;
  sandboxImage: string;
  supervisorImage: string;
  /** The path of the compiled fake supervisor; empty unless the driver's command asks for it. */
  supervisor: string;
  /** Puts the probe's image on the engine, once. */
  probeImage: () => Promise<string>;
}

const GATEWAY_DEADLINE_MS = 20_000;

const DRIVER_DEADLINE_MS = 30_000;

/** The gateway's way out includes stopping every running sandbox. */
const GATEWAY_GRACE_MS = 3_000;

const DRIVER_GRACE_MS = 1_000;

/** What is shown of a line that a sandbox printed, in characters. */
const LONGEST_LINE = 2_000;

/** One gateway with one driver, and the tap between them. Lives in the keeper. */
export class Stack {
  readonly folder: string;
  readonly network: string;
  readonly driverSocket: string;
  readonly gatewaySocket: string;
  tap: Tap | undefined;
  engineProxy: EngineProxy | undefined;
  gateway: Child | undefined;
  driver: Child | undefined;
  /** Driver processes beside the stack's own, by number, for whoever tries how one starts and ends. */
  readonly otherDrivers = new Map<number, Child>();
  #lastDriver = 0;
  port = 0;
  healthPort = 0;
  #tls: StackInfo["tls"];
  #isStopped = false;
  #starting: Promise<unknown> | undefined;
  readonly #sandboxIds = new Set<string>();
  /** Ids that gateways gave, and that no name on a shared engine can be searched for. */
  readonly #strangeIds = new Set<string>();

  constructor(
    readonly id: number,
    readonly spec: StackSpec,
    readonly setup: Setup,
  ) {
    this.folder = join(setup.run.folder, String(id));
    this.network = `openshell-e2e-${setup.run.id}-${id}`;
    this.driverSocket = join(this.folder, "driver", "driver.sock");
    this.gatewaySocket = spec.tap === false ? this.driverSocket : join(this.folder, "tap", "driver.sock");
  }

  /** Starts what the spec asks for; when that fails, nothing stays. */
  async start(): Promise<StackInfo> {
    mkdirSync(this.folder, { mode: 0o700 });
    // The driver is to make it private; until then the folder around it is.
    mkdirSync(join(this.folder, "driver"), { mode: 0o755 });
    mkdirSync(join(this.folder, "tap"), { mode: 0o700 });
    const order = this.spec.order ?? "driver-first";
    try {
      if (order !== "driver-only") await mustReachLoopback();
      this.port = await freePort();
      do this.healthPort = await freePort();
      while (this.healthPort === this.port);
      if (this.spec.tls) this.#tls = await this.makeCertificates("pki");
      // What is made from here on `stop` waits for; before, it would find nothing, and this would go on after it.
      if (this.#isStopped) throw new HarnessError("The stack was stopped while it started");
      this.#writeConfig();
      if (order === "gateway-first") this.#spawnGateway();
      const driver = order === "gateway-only" ? Promise.resolve() : this.#startDriverOnNetwork();
      this.#starting = Promise.allSettled([driver]);
      if (order === "driver-only") {
        await driver;
        return this.info;
      }
      if (this.spec.tap !== false && order === "driver-first") {
        // The tap lets nothing through before the driver is ready, so the gateway need not wait to be started.
        this.tap = await this.#openTap(driver);
        await Promise.all([driver, this.startGateway()]);
      } else {
        await driver;
        if (this.spec.tap !== false) this.tap = await this.#openTap(driver);
        await this.startGateway();
      }
      return this.info;
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  get info(): StackInfo {
    const scheme = this.spec.tls ? "https" : "http";
    return {
      id: this.id,
      endpoint: `${scheme}://127.0.0.1:${this.port}`,
      healthEndpoint: `http://127.0.0.1:${this.healthPort}`,
      network: this.network,
      folder: this.folder,
      gatewaySocket: this.gatewaySocket,
      driverSocket: this.driverSocket,
      engineSocket: this.setup.engine?.socket ?? "",
      pids: { keeper: process.pid, gateway: this.gateway?.serving ?? 0, driver: this.driver?.serving ?? 0 },
      logs: { gateway: this.#log("gateway"), driver: this.#log("driver") },
      config: join(this.folder, "gateway.toml"),
      tls: this.#tls,
    };
  }

  #log(name: string): string {
    return join(this.folder, `${name}.log`);
  }

  /** The network is ours before the driver asks for it, so that it carries the run's label and is removed with it. */
  async #startDriverOnNetwork(): Promise<void> {
    const { engine, parts, sandboxImage, run, rootless, probeImage } = this.setup;
    await Promise.all([
      engine?.createNetwork(this.network, run),
      this.spec.engineProxy ? this.#openEngineProxy() : undefined,
      this.spec.probe && engine ? probeImage() : undefined,
    ]);
    const holdsBridge = parts.engine.real && !rootless && this.spec.holdBridge !== false;
    await Promise.all([
      this.startDriver(),
      engine && holdsBridge ? engine.holdBridge(this.network, sandboxImage, run) : undefined,
    ]);
  }

  async #openEngineProxy(): Promise<void> {
    const { engine } = this.setup;
    if (!engine) throw new HarnessError("engineProxy: the harness does not know this driver's engine");
    this.engineProxy = await EngineProxy.open(join(this.folder, "engine.sock"), engine.socket);
  }

  /** Starts the driver and waits until it answers. */
  async startDriver(): Promise<void> {
    const driver = (this.driver = await this.#launchDriver({}, "driver"));
    // While it starts: the tap needs it, and whoever waits for a gateway.
    if (this.spec.order !== "driver-only") loadGrpc();
    await driver.ready(() => mustListen(this.driverSocket), "bind its socket", DRIVER_DEADLINE_MS);
    await this.#askDriver(driver);
    await this.tap?.reconnected(5_000);
  }

  /** Starts one more driver process, told `differing` things; whether it gets anywhere is for the caller to see. */
  async startOtherDriver(differing: Partial<DriverContext>): Promise<number> {
    const number = ++this.#lastDriver;
    this.otherDrivers.set(number, await this.#launchDriver(differing, `driver-${number + 1}`));
    return number;
  }

  async #launchDriver(differing: Partial<DriverContext>, name: string): Promise<Child> {
    const { run, settings, parts, commands, engine, sandboxImage, probeImage } = this.setup;
    const supervisorImage = this.spec.probe && engine ? await probeImage() : this.setup.supervisorImage;
    const state = differing.state ?? join(this.folder, `${name}-home`);
    const scheme = this.spec.tls ? "https" : "http";
    const context: DriverContext = {
      socket: this.driverSocket,
      endpoint: `${scheme}://127.0.0.1:${this.port}`,
      port: this.port,
      network: this.network,
      podman_socket: this.engineProxy?.socket ?? engine?.socket ?? "",
      sandbox_image: sandboxImage,
      supervisor_image: supervisorImage,
      supervisor: this.setup.supervisor,
      stop_timeout: settings.stopTimeout,
      state,
      tls_ca: this.#tls?.ca ?? "",
      tls_cert: this.#tls?.cert ?? "",
      tls_key: this.#tls?.key ?? "",
      ...differing,
    };
    const seen = settings.driverEnv
      .split(",")
      .map((name) => name.trim())
      .filter(Boolean);
    const passed = Object.fromEntries(
      seen.flatMap((name) => (name in process.env ? [[name, process.env[name]!]] : [])),
    );
    const environment = { ...cleanEnvironment(run, state), ...passed };
    const argv = profileOf(settings, parts)(
      this.spec.probe && name === "driver" ? commands.checkedDriver : commands.driver,
      context,
    );
    return Child.start(name, argv, environment, this.#log(name));
  }

  async #openTap(driverReady: Promise<unknown>): Promise<Tap> {
    const tap = await Tap.open(
      this.gatewaySocket,
      this.driverSocket,
      (sandboxId, token) => {
        this.remember(sandboxId);
        know(token);
      },
      driverReady,
    );
    if (this.setup.settings.trace === "1") {
      const file = join(this.folder, TRACE_FILE);
      tap.onEnd = (line) => appendFileSync(file, `${new Date().toISOString()} ${readable(line)}\n`);
    }
    return tap;
  }

  /** A driver that accepts and never answers would hang the gateway for ever, without a word. */
  async #askDriver(driver: Child): Promise<void> {
    const upstream = new Upstream(this.driverSocket);
    const ask = () => upstream.ask("/openshell.compute.v1.ComputeDriver/GetCapabilities", 3_000);
    try {
      await driver.ready(ask, "answer GetCapabilities", 5_000);
    } finally {
      upstream.close();
    }
  }

  // The gateway

  /** Has the gateway's program make a CA, and certificates of it, in a folder of this stack. Resolves with a client's files. */
  async makeCertificates(name: string): Promise<Certificates> {
    const { commands, run } = this.setup;
    const folder = join(this.folder, name);
    const sans = ["host.containers.internal", "host.openshell.internal"].flatMap((name) => [
      "--server-san",
      name,
    ]);
    const argv = [...commands.gateway, "generate-certs", "--output-dir", folder, ...sans];
    const home = join(this.folder, "certs-home");
    const maker = Child.start(
      "generate-certs",
      argv,
      cleanEnvironment(run, home),
      this.#log("generate-certs"),
    );
    await within(15_000, "generate-certs", maker.exited);
    if (maker.exitCode !== 0)
      throw new HarnessError(`generate-certs: exit code ${maker.exitCode}\n${maker.describe()}`);
    for (const key of new Bun.Glob("**/*.{key,pem}").scanSync({ cwd: folder, absolute: true }))
      know(readFileSync(key, "utf8"));
    const file = (name: string) => join(folder, name);
    return { ca: file("ca.crt"), cert: file("client/tls.crt"), key: file("client/tls.key") };
  }

  #writeConfig(): void {
    const { spec, folder } = this;
    const name = spec.driverName ?? DRIVER_NAME;
    const jwt = spec.tls ? join(folder, "pki", "jwt") : writeSigningKeys(join(folder, "jwt"));
    const pki = (file: string) => join(folder, "pki", file);
    const security = spec.tls
      ? {
          tls: {
            cert_path: pki("server/tls.crt"),
            key_path: pki("server/tls.key"),
            client_ca_path: pki("ca.crt"),
          },
          mtls_auth: { enabled: true },
        }
      : { disable_tls: true, auth: { allow_unauthenticated_users: true } };
    const config = {
      openshell: {
        version: 1,
        gateway: {
          bind_address: `127.0.0.1:${this.port}`,
          health_bind_address: `127.0.0.1:${this.healthPort}`,
          log_level: "info",
          compute_drivers: [name],
          ...security,
          gateway_jwt: {
            signing_key_path: join(jwt, "signing.pem"),
            public_key_path: join(jwt, "public.pem"),
            kid_path: join(jwt, "kid"),
            gateway_id: `e2e-${this.setup.run.id}`,
            ttl_secs: 0,
          },
          ...spec.gatewayTable,
        },
        drivers: { [spec.tableName ?? name]: spec.table ?? { socket_path: this.gatewaySocket } },
      },
    };
    writeFileSync(this.info.config, toToml(config), { mode: 0o600 });
  }

  #spawnGateway(): Child {
    const { run, commands } = this.setup;
    const fill = (text: string) => text.replaceAll("{socket}", this.gatewaySocket);
    const database = `sqlite:${urlPath(join(this.folder, "gateway.db"))}?mode=rwc`;
    const argv = [
      ...commands.gateway,
      ...["--config", this.info.config, "--db-url", database],
      ...(this.spec.gatewayArgs ?? []).map(fill),
    ];
    const added = Object.entries(this.spec.gatewayEnv ?? {}).map(([name, value]) => [name, fill(value)]);
    const environment = {
      ...cleanEnvironment(run, join(this.folder, "gateway-home")),
      ...Object.fromEntries(added),
    };
    return (this.gateway = Child.start("gateway", argv, environment, this.#log("gateway")));
  }

  /** Starts the gateway, unless it runs, and waits until it answers Health. */
  async startGateway(): Promise<void> {
    const gateway = this.gateway?.alive ? this.gateway : this.#spawnGateway();
    const deadlineMs = this.spec.deadlineMs ?? GATEWAY_DEADLINE_MS;
    try {
      await gateway.ready(() => dial(this.port), `listen on port ${this.port}`, deadlineMs);
      const client = openClient(this.info);
      try {
        await gateway.ready(
          () => unary(client, client.Health, {}, { deadlineMs: 3_000 }),
          "answer Health",
          deadlineMs,
        );
      } finally {
        client.close();
      }
    } catch (error) {
      const cause = knownCause(gateway.tail(40));
      throw cause ? new HarnessError(`${(error as Error).message}\n  likely cause: ${cause}`) : error;
    }
  }

  /** Remembers a sandbox of this stack, to find what is left of it; of an id that is no UUID, that nothing can be. */
  remember(sandboxId: string): void {
    if (!sandboxId) return;
    if (!isSandboxId(sandboxId)) return void this.#strangeIds.add(sandboxId);
    this.setup.run.remember(sandboxId);
    this.#sandboxIds.add(sandboxId);
  }

  /** What nobody looks for on the engine, a line for each reason: an id that might be a part of anybody's names. */
  get notLookedFor(): string[] {
    return [...this.#strangeIds].map(
      (id) =>
        `a sandbox was given the id ${JSON.stringify(readable(id.slice(0, 80)))}, which is no UUID: ` +
        "what it left in volumes and secrets is neither looked for nor removed",
    );
  }

  /** What sandboxes of this stack, those with these ids or all, left on the engine. Its network and bridge do not count. */
  async leftovers(sandboxIds?: string[]): Promise<Belonging[]> {
    if (!this.setup.engine) return [];
    const ids = sandboxIds ?? [...this.#sandboxIds];
    const things = await belongings(this.setup.engine, [this.network], ids);
    const expected = [this.network, `${this.network}-bridge`];
    const wanted = (name: string) => !sandboxIds || sandboxIds.some((id) => holdsId(name, id));
    return things.filter(({ name }) => !expected.includes(name) && wanted(name));
  }

  /** Its sandboxes as the engine has them, with the last lines that each printed. */
  async engineView(): Promise<string[]> {
    const { engine } = this.setup;
    if (!engine) return [];
    const sandboxes = (await engine.containers([this.network])).filter(({ Labels }) => !Labels?.[RUN_LABEL]);
    return Promise.all(
      sandboxes.map(async ({ Id, Names, State, ExitCode }) => {
        const exit = State === "exited" ? ` with code ${ExitCode}` : "";
        const said = (await engine.logs(Id, 10)).map((line) => `  ${line.slice(0, LONGEST_LINE)}`);
        return readable([`${Names[0]} ${State}${exit}`, ...said].join("\n"));
      }),
    );
  }

  /**
   * Ends gateway, driver and tap, in that order, since an open watch keeps some drivers from exiting; then removes the
   * network and whatever is still on it.
   */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.gateway?.stop(GATEWAY_GRACE_MS);
    await Promise.all(
      [this.driver, ...this.otherDrivers.values()].map((driver) => driver?.stop(DRIVER_GRACE_MS)),
    );
    this.tap?.close();
    // A start that is still under way ends now, or has its driver ended: nothing more may be made on the engine.
    await this.#starting;
    await this.driver?.stop(DRIVER_GRACE_MS);
    this.engineProxy?.close();
    const { engine } = this.setup;
    if (engine)
      await removeBelongings(engine, await belongings(engine, [this.network], [...this.#sandboxIds]));
  }
}

/** A free port below the range from which the kernel takes ports for outgoing connections. */
export async function freePort(): Promise<number> {
  return eventually(
    () => {
      const port = 20_000 + Math.floor(Math.random() * 12_000);
      return new Promise<number>((done, reject) => {
        const server = createServer().once("error", reject);
        server.listen(port, "127.0.0.1", () => server.close(() => done(port)));
      });
    },
    { what: "find a free port", deadlineMs: 2_000 },
  );
}

function dial(port: number): Promise<void> {
  return new Promise((done, reject) => {
    const socket = connectSocket(port, "127.0.0.1");
    socket.on("error", reject);
    socket.once("connect", () => {
      socket.destroy();
      done();
    });
  });
}

/** Writes the Ed25519 key pair with which a gateway signs sandbox tokens: signing.pem, public.pem and kid. Returns the folder. */
export function writeSigningKeys(folder: string): string {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  const write = (name: string, text: string | Buffer) =>
    writeFileSync(join(folder, name), text, { mode: 0o600 });
  const key = privateKey.export({ type: "pkcs8", format: "pem" }).toString();
  know(key);
  write("signing.pem", key);
  write("public.pem", publicKey.export({ type: "spki", format: "pem" }));
  write("kid", randomBytes(16).toString("hex"));
  return folder;
}

/** What a gateway's last words mean, where we have met them before. */
function knownCause(log: string): string | undefined {
  const causes: [RegExp, string][] = [
    [
      /Cannot assign requested address/,
      "the driver asked for a listener on an address that this machine does not have (yet): a rootful Podman makes a " +
        "network's bridge only when its first container joins",
    ],
    [
      /requires socket_path/,
      "the gateway looks for [openshell.drivers.NAME] under the name in lower case, and found no socket_path there",
    ],
    [
      /requires --drivers/,
      "OPENSHELL_COMPUTE_DRIVER_SOCKET was in the gateway's environment: the driver and the gateway share that name",
    ],
    [/within 30s/, "no driver served the socket; a gateway gives up after 30 s"],
  ];
  return causes.find(([pattern]) => pattern.test(log))?.[1];
}
