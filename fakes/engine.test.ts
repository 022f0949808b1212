// SPDX-License-Identifier: Apache-2.0

/** What the engine without containers answers and does, where a driver or the harness depends on it. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  DEADLINE_MS,
  engineCommand,
  processes,
  processesBelow,
  settles,
  startEngine,
  tarOf,
} from "./engine/lab.ts";

// Far above our own deadlines: when one of bun's passes, bun kills every child of this process.
setDefaultTimeout(60_000);

let home: string;
let socket: string;
let engineProcess: Bun.Subprocess;

async function restartEngine(): Promise<void> {
  engineProcess = await startEngine(join(home, "root"), socket);
}

async function stopEngine(signal: NodeJS.Signals): Promise<number> {
  engineProcess.kill(signal);
  return engineProcess.exited;
}

interface Answer {
  status: number;
  text: string;
  headers: Headers;
}

async function call(
  method: string,
  path: string,
  body?: unknown,
  version = "/v5.0.0/libpod",
): Promise<Answer> {
  const raw = body instanceof Uint8Array || typeof body === "string";
  const response = await fetch(`http://d${version}${path}`, {
    unix: socket,
    keepalive: false,
    method,
    ...(body !== undefined && { body: raw ? body : JSON.stringify(body) }),
    signal: AbortSignal.timeout(DEADLINE_MS),
  });
  return { status: response.status, text: await response.text(), headers: response.headers };
}

const get = async <Type>(path: string): Promise<Type> => JSON.parse((await call("GET", path)).text) as Type;
const brief = ({ status, text }: Answer): string =>
  text.startsWith("{")
    ? `${status} ${(JSON.parse(text) as { message: string }).message}`
    : `${status} ${text}`.trim();

interface Container {
  Id: string;
  State: {
    Status: string;
    Pid: number;
    ExitCode: number;
    StartedAt: string;
    FinishedAt: string;
    StoppedByUser?: boolean;
    OOMKilled: boolean;
    Error: string;
    Health?: { Status: string };
  };
  HostConfig: Record<string, unknown>;
  Config: { Env: string[] };
  NetworkSettings: { Ports: Record<string, { HostPort: string }[]> };
}

const inspect = (name: string): Promise<Container> => get(`/containers/${name}/json`);
const status = async (name: string): Promise<string> => (await inspect(name)).State.Status;

/** Makes an image of files: the mode is that of a program. */
async function makeImage(reference: string, files: Record<string, string>, query = ""): Promise<Answer> {
  const tree = mkdtempSync(join(home, "tree-"));
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(join(tree, path, ".."), { recursive: true });
    if (content.startsWith("-> ")) symlinkSync(content.slice(3), join(tree, path));
    else writeFileSync(join(tree, path), content, { mode: 0o755 });
  }
  return call("POST", `/images/import?reference=${reference}${query}`, tarOf(tree));
}

/** A container that runs a shell script; the script finds its files under $R. */
async function create(name: string, script: string, more: object = {}): Promise<string> {
  const spec = {
    name,
    image: "localhost/shell:1",
    entrypoint: ["/bin/run"],
    command: [`R=$OPENSHELL_FAKE_ROOT; ${script}`],
    ...more,
  };
  const answer = await call("POST", "/containers/create", spec);
  if (answer.status !== 201) throw new Error(`create of ${name}: ${brief(answer)}`);
  return (JSON.parse(answer.text) as { Id: string }).Id;
}

const start = async (name: string): Promise<string> => brief(await call("POST", `/containers/${name}/start`));
const remove = async (name: string): Promise<string> =>
  brief(await call("DELETE", `/containers/${name}?force=true&volumes=true&timeout=0`));

async function run(name: string, script: string, more: object = {}): Promise<string> {
  const id = await create(name, script, more);
  expect(await start(name)).toBe("204");
  return id;
}

const rootOf = (id: string): string => join(home, "root/containers", id, "rootfs");
const FOREVER = "while :; do sleep 0.02; done";
const GRACEFUL = `trap 'exit 3' TERM; echo ready >$R/ready; ${FOREVER}`;
const isReady = (id: string): Promise<void> => settles(() => existsSync(join(rootOf(id), "ready")), true);

/** The actions of one container, in order. */
async function story(id: string): Promise<string[]> {
  const { text } = await call("GET", "/events?stream=false&since=0");
  return text
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line) as { Action: string; Actor: { ID: string } })
    .filter(({ Actor }) => Actor.ID === id)
    .map(({ Action }) => Action);
}

const processesOf = (id: string): string[] => processesBelow(rootOf(id));

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "eng-"));
  socket = join(home, "engine.sock");
  await restartEngine();
  await makeImage("localhost/shell:1", { "bin/run": '#!/bin/sh\nexec /bin/sh -c "$1"\n' });
});

afterAll(async () => {
  // A test that failed may have left none; containers need one to end.
  if (engineProcess.exitCode !== null || engineProcess.signalCode !== null) await restartEngine();
  const left = (await get<{ Names: string[] }[]>("/containers/json?all=true")).map(({ Names }) => Names[0]);
  for (const name of left) await remove(name as string);
  const code = await stopEngine("SIGTERM");
  const strays = processesBelow(home);
  rmSync(home, { recursive: true, force: true });
  expect({ left, strays, code }).toEqual({ left: [], strays: [], code: 0 });
});

describe("the service", () => {
  test("answers like Podman 5.4 under every version's prefix", async () => {
    const ping = await call("GET", "/_ping", undefined, "");
    expect(ping.text).toBe("OK");
    expect(ping.headers.get("libpod-api-version")).toBe("5.4.2");
    for (const prefix of ["/v4.0.0/libpod", "/v5.0.0/libpod", "/v5.4.2/libpod", "/libpod"]) {
      const { text } = await call("GET", "/info", undefined, prefix);
      expect(JSON.parse(text)).toMatchObject({
        host: { cgroupVersion: "v2", security: { rootless: false } },
        version: { APIVersion: "5.4.2" },
      });
    }
    expect((await call("GET", "/nothing/here")).status).toBe(404);
  });

  test("keeps its state to itself", () => {
    expect(statSync(join(home, "root")).mode & 0o777).toBe(0o700);
    expect(statSync(join(home, "root/secrets")).mode & 0o777).toBe(0o700);
  });

  test.each([
    [["--version"], 0, "podman version 5.4.2+fake"],
    [["--banana", "system", "service"], 2, "Error: unknown flag: --banana"],
    [["system", "service", "unix:///x"], 2, "Error: --root is required"],
    [
      ["--root", "/x", "system", "service", "tcp://h"],
      2,
      'Error: the service needs a unix:// address, got "tcp://h"',
    ],
    [["--root", "/x", "run", "image"], 2, 'Error: unrecognized command "run image"'],
    [
      ["--root", "/x", "system", "service", "--time=soon", "unix:///x"],
      2,
      'Error: invalid argument "soon" for "--time"',
    ],
  ])("%j exits with %d", async (words, code, output) => {
    const child = Bun.spawn(engineCommand(...words), { stdout: "pipe", stderr: "pipe" });
    const said = (await new Response(child.stdout).text()) + (await new Response(child.stderr).text());
    expect(await child.exited).toBe(code);
    expect(said).toStartWith(output);
    expect(said.trim().split("\n")).toHaveLength(1);
  });

  test("ends when it was idle for the time it was given", async () => {
    const words = engineCommand(
      "--root",
      join(home, "idle"),
      "system",
      "service",
      "--time=1",
      `unix://${home}/idle.sock`,
    );
    const idle = Bun.spawn(words, { stdio: ["ignore", "inherit", "inherit"] });
    expect(await idle.exited).toBe(0);
    expect(existsSync(join(home, "idle.sock"))).toBe(false);
  });
});

describe("what is there twice, and what is not there", () => {
  test("duplicates are refused as Podman does", async () => {
    const twice = async (method: string, path: string, body: unknown): Promise<string> => {
      await call(method, path, body);
      return brief(await call(method, path, body));
    };
    const spec = { name: "twice", image: "localhost/shell:1", command: ["true"] };
    expect(await twice("POST", "/volumes/create", { Name: "twice" })).toBe(
      "500 volume with name twice already exists: volume already exists",
    );
    expect(await twice("POST", "/secrets/create?name=twice", "value")).toBe("500 twice: secret name in use");
    expect(await twice("POST", "/networks/create", { name: "twice" })).toBe(
      "409 network name twice already used: network already exists",
    );
    expect(await twice("POST", "/containers/create", spec)).toStartWith(
      '500 creating container storage: the container name "twice" is already in use by ',
    );
    expect(await remove("twice")).toBe("204");
    for (const path of ["/volumes/twice", "/secrets/twice"])
      expect(brief(await call("DELETE", path))).toBe("204");
    expect((await call("DELETE", "/networks/twice")).text).toBe('[{"Name":"twice","Err":null}]\n');
  });

  test.each([
    ["GET", "/containers/nope/json", '404 no container with name or ID "nope" found: no such container'],
    ["POST", "/containers/nope/start", '404 no container with name or ID "nope" found: no such container'],
    [
      "DELETE",
      "/containers/nope?force=true",
      '404 no container with ID or name "nope" found: no such container',
    ],
    ["DELETE", "/volumes/nope", '404 no volume with name "nope" found: no such volume'],
    ["DELETE", "/secrets/nope", '404 no secret with name or id "nope": no such secret'],
    ["GET", "/networks/nope/json", "404 network not found"],
    ["GET", "/images/nope/json", "404 failed to find image nope: nope: image not known"],
    ["GET", "/images/nope/exists", "404 failed to find image nope"],
    [
      "GET",
      "/containers/json?filters=%7B%22colour%22%3A%5B%22red%22%5D%7D",
      "500 colour is an invalid filter",
    ],
  ])("%s %s", async (method, path, expected) => {
    expect(brief(await call(method, path))).toBe(expected);
  });

  test.each([
    [{ image: "localhost/nope:1" }, "404 no such image: localhost/nope:1: image not known"],
    [{ secrets: [{ source: "nope" }] }, '500 no secret with name or id "nope": no such secret'],
    [{ networks: { nope: {} } }, "500 unable to find network with name or ID nope: network not found"],
    [
      { mounts: [{ type: "bind", source: "/nope", destination: "/x" }] },
      "500 statfs /nope: no such file or directory",
    ],
    [
      { volumes: [1, 2].map((n) => ({ name: `v${n}`, dest: "/x" })) },
      '500 conflict in specified volumes - multiple volumes at "/x": duplicate mount destination',
    ],
    [
      { name: "a b" },
      "500 running container create option: names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*: invalid argument",
    ],
  ])("a container with %j leaves nothing", async (wrong, expected) => {
    const spec = { name: "wrong", image: "localhost/shell:1", command: ["true"], ...wrong };
    expect(brief(await call("POST", "/containers/create", spec))).toBe(expected);
    expect(await get<object[]>("/containers/json?all=true")).toEqual([]);
    expect(readdirSync(join(home, "root/containers"))).toEqual([]);
    expect(await get<object[]>("/volumes/json")).toEqual([]);
  });
});

describe("images", () => {
  test("come from a tree, with what `podman import --change` can say", async () => {
    const changes = [
      "USER joe",
      "ENV A=b",
      "WORKDIR /w",
      'ENTRYPOINT ["/bin/run"]',
      'CMD ["env >$OPENSHELL_FAKE_ROOT/env; pwd >$OPENSHELL_FAKE_ROOT/pwd"]',
    ];
    const query = changes.map((change) => `&changes=${encodeURIComponent(change)}`).join("");
    const made = await makeImage("tool", { "bin/run": '#!/bin/sh\nexec /bin/sh -c "$1"\n' }, query);
    expect(made.status).toBe(200);
    const image = await get<{ Id: string; Config: object; RepoTags: string[] }>("/images/tool/json");
    expect(`sha256:${image.Id}`).toBe((JSON.parse(made.text) as { Id: string }).Id);
    expect(image).toMatchObject({
      RepoTags: ["localhost/tool:latest"],
      Config: { User: "joe", WorkingDir: "/w" },
    });
    await call("POST", "/containers/create", { name: "tool", image: image.Id });
    await start("tool");
    await settles(() => status("tool"), "exited");
    const { Id } = await inspect("tool");
    expect(readFileSync(join(rootOf(Id), "env"), "utf8")).toContain("\nA=b\n");
    expect(readFileSync(join(rootOf(Id), "pwd"), "utf8")).toBe(`${rootOf(Id)}/w\n`);
    expect(brief(await call("DELETE", "/images/tool"))).toStartWith("409 image used by ");
    await remove("tool");
    expect((await call("DELETE", "/images/tool")).status).toBe(200);
    expect(existsSync(join(home, "root/images", image.Id))).toBe(false);
  });

  test("links in an image stay inside it", async () => {
    await makeImage("localhost/links:1", {
      "data/file": "content",
      abs: "-> /data/file",
      up: "-> ../../../../data/file",
    });
    const { Id } = await get<{ Id: string }>("/images/localhost%2Flinks:1/json");
    for (const link of ["abs", "up"])
      expect(readFileSync(join(home, "root/images", Id, link), "utf8")).toBe("content");
    await call("DELETE", "/images/localhost/links:1");
  });

  test.each([
    ["localhost/shell:1", "missing", undefined],
    ["localhost/shell:1", "never", undefined],
    ["localhost/shell:1", "newer", undefined],
    [
      "localhost/shell:1",
      "always",
      /^initializing source docker:\/\/localhost\/shell:1: pinging container registry/,
    ],
    ["localhost/nope:1", "never", /^localhost\/nope:1: image not known$/],
    [
      "localhost/nope:1",
      "missing",
      /^initializing source docker:\/\/localhost\/nope:1: pinging container registry/,
    ],
  ])("a pull of %s with policy %s", async (reference, policy, error) => {
    const { status: code, text } = await call("POST", `/images/pull?reference=${reference}&policy=${policy}`);
    const last = JSON.parse(text.trimEnd().split("\n").at(-1) ?? "") as { id?: string; error?: string };
    expect(code).toBe(200);
    if (error) expect(last.error).toMatch(error);
    else expect(last.id).toHaveLength(64);
  });
});

describe("a container", () => {
  test("has the environment that Podman would give it, and where its files are", async () => {
    const id = await create("env", "env >$R/env", {
      hostname: "box",
      env: { FOO: "a b", PATH: process.env.PATH },
      hostadd: ["host.containers.internal:host-gateway", "other:10.1.2.3"],
    });
    await start("env");
    await settles(() => status("env"), "exited");
    const seen = readFileSync(join(rootOf(id), "env"), "utf8")
      .trim()
      .split("\n");
    // The shell's own.
    const environment = Object.fromEntries(
      seen.map((line) => [line.split("=", 1)[0], line.slice(line.indexOf("=") + 1)]),
    );
    for (const own of ["PWD", "OLDPWD", "SHLVL", "_"]) delete environment[own];
    expect(environment).toEqual({
      FOO: "a b",
      PATH: process.env.PATH ?? "",
      HOME: "/root",
      HOSTNAME: "box",
      container: "podman",
      OPENSHELL_FAKE_ROOT: rootOf(id),
      OPENSHELL_FAKE_HOSTS: "host.containers.internal=127.0.0.1,other=10.1.2.3",
    });
    expect((await inspect("env")).Config.Env).not.toContain(`OPENSHELL_FAKE_ROOT=${rootOf(id)}`);
    await remove("env");
  });

  test("finds its volumes, images, bind mounts and tmpfs in their places, and its own files again", async () => {
    await makeImage("localhost/tools:1", { tool: "#!/bin/sh\necho works" });
    await makeImage("localhost/seeded:1", {
      "bin/run": '#!/bin/sh\nexec /bin/sh -c "$1"\n',
      "data/seed": "from the image",
    });
    writeFileSync(join(home, "bound"), "bound");
    const id = await create(
      "mounts",
      "cat $R/data/seed $R/etc/app/conf >$R/seen; $R/opt/tools/tool >>$R/seen; echo x >>$R/data/runs; echo y >>$R/tmp/runs; cp $R/tmp/runs $R/tmpruns",
      {
        image: "localhost/seeded:1",
        volumes: [{ name: "data", dest: "/data" }],
        image_volumes: [{ source: "localhost/tools:1", destination: "/opt/tools" }],
        mounts: [
          { type: "bind", source: join(home, "bound"), destination: "/etc/app/conf", options: ["ro"] },
          { type: "tmpfs", source: "tmpfs", destination: "/tmp" },
        ],
      },
    );
    for (const runs of [1, 2]) {
      await start("mounts");
      await settles(() => status("mounts"), "exited");
      expect(readFileSync(join(rootOf(id), "seen"), "utf8")).toBe("from the imageboundworks\n");
      expect(readFileSync(join(home, "root/volumes/data/runs"), "utf8")).toBe("x\n".repeat(runs));
      expect(readFileSync(join(rootOf(id), "tmpruns"), "utf8")).toBe("y\n");
    }
    // Nothing of a mount stays in the container's own layer.
    expect(lstatSync(join(rootOf(id), "data")).isDirectory()).toBe(true);
    expect(existsSync(join(rootOf(id), "tmp"))).toBe(false);
    expect(brief(await call("DELETE", "/volumes/data"))).toBe(
      `409 volume data is being used by the following container(s): ${id}: volume is being used`,
    );
    await remove("mounts");
    expect(readFileSync(join(home, "bound"), "utf8")).toBe("bound");
    expect((await call("DELETE", "/volumes/data")).status).toBe(204);
    for (const image of ["tools", "seeded"]) await call("DELETE", `/images/localhost/${image}:1`);
  });

  test("has its secrets as files that only it can read, and nowhere else", async () => {
    await call("POST", "/secrets/create?name=token", "top-secret-value");
    const id = await run(
      "secret",
      `cat $R/etc/auth/token >$R/copy; cat $R/run/secrets/token >/dev/null; ${FOREVER}`,
      {
        secrets: [
          { source: "token", target: "/etc/auth/token", uid: 0, gid: 0, mode: 0o400 },
          { source: "token" },
        ],
      },
    );
    await settles(() => existsSync(join(rootOf(id), "copy")), true);
    expect(statSync(join(rootOf(id), "etc/auth/token")).mode & 0o777).toBe(0o400);
    expect(readFileSync(join(rootOf(id), "etc/auth/token"), "utf8")).toBe("top-secret-value");
    const shown = await Promise.all(
      [
        "/containers/secret/json",
        "/containers/json?all=true",
        "/secrets/json",
        "/secrets/token/json",
        "/events?stream=false&since=0",
      ].map(async (path) => (await call("GET", path)).text),
    );
    const kept = ["state.db", "state.db-wal"].map((file) => readFileSync(join(home, "root", file), "latin1"));
    expect(kept.join("")).toContain(id);
    shown.push(...kept);
    expect(shown.filter((text) => text.includes("top-secret-value"))).toEqual([]);
    await remove("secret");
    await call("DELETE", "/secrets/token");
    expect(readdirSync(join(home, "root/secrets"))).toEqual([]);
  });

  test("reports its limits and ports", async () => {
    await create("limits", "true", {
      resource_limits: { cpu: { quota: 50_000, period: 100_000 }, memory: { limit: 2 ** 26 } },
      portmappings: [{ host_port: 0, container_port: 2222, protocol: "tcp" }],
      cap_drop: ["KILL"],
    });
    const { HostConfig, NetworkSettings } = await inspect("limits");
    expect(HostConfig).toMatchObject({
      CpuQuota: 50_000,
      CpuPeriod: 100_000,
      NanoCpus: 5e8,
      Memory: 2 ** 26,
      CapDrop: ["CAP_KILL"],
    });
    expect(Number(NetworkSettings.Ports["2222/tcp"]?.[0]?.HostPort)).toBeGreaterThan(1023);
    await remove("limits");
  });

  test("is found by label, name, state and network, and only if it runs unless all are asked for", async () => {
    await call("POST", "/networks/create", { name: "n1" });
    await create("listed", FOREVER, { labels: { a: "1", b: "" }, networks: { n1: {} } });
    const found = async (filters: object, all = true): Promise<number> =>
      (
        await get<object[]>(
          `/containers/json?all=${all}&filters=${encodeURIComponent(JSON.stringify(filters))}`,
        )
      ).length;
    expect(await found({ label: ["a=1", "b"] })).toBe(1);
    expect(await found({ label: ["a=1", "c"] })).toBe(0);
    expect(await found({ label: { "a=1": true } })).toBe(1);
    expect(await found({ name: ["^list"], network: ["n1"], status: ["created"] })).toBe(1);
    expect(await found({ network: ["podman"] })).toBe(0);
    expect(await found({}, false)).toBe(0);
    expect(brief(await call("DELETE", "/networks/n1"))).toContain('"n1" has associated containers with it');
    expect((await call("DELETE", "/networks/n1?force=true")).status).toBe(200);
    expect(await found({})).toBe(0);
  });

  test("whose program is missing does not start, and says so as Podman does", async () => {
    const id = await create("missing", "true", { entrypoint: ["/no/such/program"] });
    const message =
      "crun: executable file `/no/such/program` not found: No such file or directory: OCI runtime attempted to invoke " +
      "a command that was not found";
    expect(await start("missing")).toBe(`500 ${message}`);
    expect((await inspect("missing")).State).toMatchObject({ Status: "created", Pid: 0, Error: message });
    expect(await story(id)).toEqual(["create"]);
    await remove("missing");
  });
});

describe("a container's life", () => {
  test("start, stop and remove happen, and are told, in Podman's order", async () => {
    const id = await run("life", GRACEFUL);
    await isReady(id);
    expect(await start("life")).toBe("304");
    const running = await inspect("life");
    expect(running.State).toMatchObject({
      Status: "running",
      ExitCode: 0,
      FinishedAt: "0001-01-01T00:00:00Z",
    });
    expect(brief(await call("DELETE", "/containers/life"))).toContain("cannot be removed without force");
    expect((await call("POST", "/containers/life/stop?timeout=5")).status).toBe(204);
    const { State } = await inspect("life");
    expect(State).toMatchObject({
      Status: "exited",
      Pid: 0,
      ExitCode: 3,
      OOMKilled: false,
      StoppedByUser: true,
    });
    expect(State.FinishedAt > running.State.StartedAt).toBe(true);
    expect((await call("POST", "/containers/life/stop")).status).toBe(304);
    expect((await call("POST", "/containers/life/wait")).text).toBe("3\n");
    expect(brief(await call("POST", "/containers/life/kill"))).toContain(
      "409 can only kill running containers",
    );
    await remove("life");
    expect(await story(id)).toEqual(["create", "init", "start", "die", "cleanup", "remove"]);
  });

  test("a program without a handler for SIGTERM outlives the time-out, as PID 1 of a real container does", async () => {
    const id = await run("deaf", `echo ready >$R/ready; ${FOREVER}`);
    await isReady(id);
    const began = Date.now();
    expect((await call("POST", "/containers/deaf/stop?timeout=1")).status).toBe(204);
    expect(Date.now() - began).toBeGreaterThan(900);
    expect((await inspect("deaf")).State.ExitCode).toBe(137);
    await remove("deaf");
  });

  test.each([
    ["at once", ""],
    ["and after hundreds of processes", "i=0; while [ $i -lt 400 ]; do (:); i=$((i + 1)); done;"],
  ])("its end is everybody's end, wherever they went: %s", async (_, before) => {
    // A number that no other process has as its argument.
    const sleep = `sleep ${100_000_000 + process.pid}`;
    const sleepers = (): number =>
      processes().filter((line) => line.trim().split(/\s+/).slice(2).join(" ").startsWith(sleep)).length;
    const away = Bun.which("setsid") ? `setsid ${sleep} &` : `${sleep} &`;
    const id = await run("crowd", `${away} (${sleep} &) ; env -i ${sleep} & ${before} ${GRACEFUL}`);
    await settles(sleepers, 3);
    await isReady(id);
    expect((await call("POST", "/containers/crowd/kill?signal=SIGKILL")).status).toBe(204);
    expect((await inspect("crowd")).State).toMatchObject({ Status: "exited", ExitCode: 137 });
    expect([processesOf(id), sleepers()]).toEqual([[], 0]);
    rmSync(join(rootOf(id), "ready"));
    await start("crowd");
    await isReady(id);
    await call("POST", "/containers/crowd/stop?timeout=5");
    expect((await inspect("crowd")).State.ExitCode).toBe(3);
    expect([processesOf(id), sleepers()]).toEqual([[], 0]);
    await remove("crowd");
  });

  test("a paused container does nothing until it goes on, and cannot be stopped", async () => {
    const id = await run("paused", `trap 'exit 3' TERM; while :; do echo tick >>$R/ticks; sleep 0.01; done`);
    const ticks = (): number =>
      existsSync(join(rootOf(id), "ticks")) ? statSync(join(rootOf(id), "ticks")).size : 0;
    await settles(() => ticks() > 0, true);
    expect((await call("POST", "/containers/paused/pause")).status).toBe(204);
    expect(await status("paused")).toBe("paused");
    const before = ticks();
    await Bun.sleep(60);
    expect(ticks()).toBe(before);
    expect(brief(await call("POST", "/containers/paused/stop"))).toContain(
      "is running or paused, refusing to clean up",
    );
    expect((await call("POST", "/containers/paused/unpause")).status).toBe(204);
    await settles(() => ticks() > before, true);
    expect((await call("POST", "/containers/paused/pause")).status).toBe(204);
    expect(await remove("paused")).toBe("204");
    expect(processesOf(id)).toEqual([]);
  });

  test("a signal reaches the program", async () => {
    const id = await run("signal", `trap 'echo got >$R/got' USR1; ${GRACEFUL}`);
    await isReady(id);
    expect((await call("POST", "/containers/signal/kill?signal=USR1")).status).toBe(204);
    await settles(() => existsSync(join(rootOf(id), "got")), true);
    expect(brief(await call("POST", "/containers/signal/kill?signal=BANANA"))).toBe(
      "500 invalid signal: BANANA",
    );
    await remove("signal");
  });

  test("what it writes is its log, in frames, also while it runs", async () => {
    await run("talk", `echo one; echo two >&2; sleep 0.1; echo three; exit 0`);
    const following = call("GET", "/containers/talk/logs?stdout=true&follow=true");
    await settles(() => status("talk"), "exited");
    const frame = (type: string, text: string): string =>
      `${type}\0\0\0\0\0\0${String.fromCharCode(text.length)}${text}`;
    expect((await following).text).toBe(frame("\x01", "one\n") + frame("\x01", "three\n"));
    const both = await call("GET", "/containers/talk/logs?stdout=true&stderr=true");
    expect(both.text).toBe(frame("\x01", "one\n") + frame("\x01", "three\n") + frame("\x02", "two\n"));
    expect((await call("GET", "/containers/talk/logs?stdout=true&tail=1")).text).toBe(
      frame("\x01", "three\n"),
    );
    expect(brief(await call("GET", "/containers/talk/logs"))).toContain("400 must specify at least one of");
    await remove("talk");
  });

  test("health is starting until the check says otherwise", async () => {
    await makeImage("localhost/health:1", {
      "bin/run": '#!/bin/sh\nexec /bin/sh -c "$1"\n',
      "bin/check": '#!/bin/sh\ntest -e "$OPENSHELL_FAKE_ROOT/well"\n',
    });
    const id = await run("health", FOREVER, {
      image: "localhost/health:1",
      healthconfig: { test: ["CMD", "/bin/check"], Retries: 2, Timeout: 2e9 },
    });
    const check = async (): Promise<string> =>
      (JSON.parse((await call("GET", "/containers/health/healthcheck")).text) as { Status: string }).Status;
    expect((await inspect("health")).State.Health?.Status).toBe("starting");
    expect([await check(), await check()]).toEqual(["starting", "unhealthy"]);
    writeFileSync(join(rootOf(id), "well"), "");
    expect(await check()).toBe("healthy");
    expect((await inspect("health")).State.Health?.Status).toBe("healthy");
    expect((await story(id)).slice(-1)).toEqual(["health_status"]);
    await remove("health");
    await call("DELETE", "/images/localhost/health:1");
  });

  test("a stream of events has its headers at once, and what its filters let through", async () => {
    const leave = new AbortController();
    const filters = encodeURIComponent(JSON.stringify({ type: ["container"], label: ["seen=yes"] }));
    const response = await fetch(`http://d/v4.0.0/libpod/events?stream=true&filters=${filters}`, {
      unix: socket,
      signal: leave.signal,
    });
    expect(response.status).toBe(200);
    let text = "";
    void (async () => {
      for await (const chunk of response.body ?? []) text += new TextDecoder().decode(chunk);
    })().catch(() => {});
    await create("unseen", "true");
    await create("seen", "true", { labels: { seen: "yes" } });
    await remove("unseen");
    await remove("seen");
    const actions = (): string[] =>
      text
        .split("\n")
        .filter(Boolean)
        .map((line) => {
          const { Action, Actor } = JSON.parse(line) as {
            Action: string;
            Actor: { Attributes: Record<string, string> };
          };
          return `${Action} ${Actor.Attributes.name}`;
        });
    await settles(actions, ["create seen", "remove seen"]);
    leave.abort();
  });
});

describe("the engine's own end", () => {
  test("containers go on when it is killed, and the next engine on the same state takes them over", async () => {
    const [goesOn, ends] = [await run("goes-on", GRACEFUL), await run("ends", `${GRACEFUL}`)];
    await Promise.all([goesOn, ends].map(isReady));
    const before = await inspect("goes-on");
    const pid = (await inspect("ends")).State.Pid;
    expect(await stopEngine("SIGKILL")).toBe(137);
    process.kill(pid, "SIGTERM");
    await settles(() => processesOf(ends), []);
    expect(processesOf(goesOn)).not.toEqual([]);
    await restartEngine();
    expect((await inspect("goes-on")).State).toEqual(before.State);
    await settles(async () => (await inspect("ends")).State.ExitCode, 3);
    expect(await story(ends)).toEqual(["create", "init", "start", "die", "cleanup"]);
    expect((await call("POST", "/containers/goes-on/stop?timeout=5")).status).toBe(204);
    expect((await inspect("goes-on")).State.ExitCode).toBe(3);
    await Promise.all([remove("goes-on"), remove("ends")]);
  });

  test("SIGTERM ends it at once, also with an open stream, and leaves the containers alone", async () => {
    const id = await run("stays", GRACEFUL);
    await isReady(id);
    const stream = await fetch("http://d/v5.0.0/libpod/events?stream=true", { unix: socket });
    expect(await stopEngine("SIGTERM")).toBe(0);
    expect(existsSync(socket)).toBe(false);
    await stream.text().catch(() => "cut off");
    expect(processesOf(id)).not.toEqual([]);
    await restartEngine();
    expect(await status("stays")).toBe("running");
    await remove("stays");
    expect(processesOf(id)).toEqual([]);
  });
});
