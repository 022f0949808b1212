// SPDX-License-Identifier: Apache-2.0

/** Who may talk to whom, and where the token of a sandbox must never be seen. */
import { Metadata } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { createPrivateKey, randomUUID, sign } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { connectable } from "../../harness/base/system.ts";
import { eventually, parts, refusal, type RunningStack, type Sandbox, scenario } from "../../harness.ts";
import { processTable } from "../../harness/runtime/processes.ts";
import { unary } from "../../proto/contract.ts";
import { descriptorsOf, inspect, withoutPodmanDriver, withoutProc } from "./given.ts";

// Sockets

for (const [id, whose] of [
  ["SE-01", "driver"],
  ["SE-02", "gateway"],
] as const) {
  const title = whose === "driver" ? "the driver's socket" : "the socket that the gateway dials";
  scenario(`${id} ${title} and its folder are this user's alone`, async ({ stack }) => {
    const socket = statSync(stack.info[`${whose}Socket`]);
    const folder = statSync(dirname(stack.info[`${whose}Socket`]));
    expect({ socket: permissions(socket), folder: permissions(folder) }).toEqual({
      socket: "600",
      folder: "700",
    });
    expect([socket.uid, folder.uid]).toEqual([process.getuid!(), process.getuid!()]);
  });
}

const permissions = ({ mode }: { mode: number }): string => (mode & 0o777).toString(8);

scenario(
  "SE-03 another user cannot connect to the driver",
  async ({ stack }) => {
    expect(await connectable(stack.info.driverSocket)).toBe(true);
    expect(dialAs(0, stack.info.driverSocket)).toBe("connected");
    expect(dialAs(65534, stack.info.driverSocket)).toBe("EACCES");
  },
  { skip: process.getuid?.() !== 0 && "only root can become another user" },
);

/** Connects to a Unix socket in a process of that user. Returns "connected" or the error's code. */
function dialAs(uid: number, socket: string): string {
  const program = `
    process.setgroups([]);
    process.setgid(${uid});
    process.setuid(${uid});
    require("node:net").connect(${JSON.stringify(socket)})
      .on("connect", () => (console.log("connected"), process.exit()))
      .on("error", (error) => (console.log(error.code), process.exit()));`;
  const dialled = Bun.spawnSync([process.execPath, "-e", program], { env: {}, timeout: 10_000 });
  return `${dialled.stdout}${dialled.stderr}`.trim();
}

// Listeners

scenario(
  "SE-04 the gateway listens on loopback and on its sandboxes' network alone",
  async ({ stack }) => {
    const addresses = listeningAddresses(stack.info.pids.gateway);
    expect(addresses).toContain("127.0.0.1");
    for (const address of addresses) expect(address).toMatch(/^(127|10|172\.(1[6-9]|2\d|3[01])|192\.168)\./);
  },
  { skip: withoutProc },
);

scenario(
  "SE-05 a driver with a socket listens on no port beside it",
  async ({ stack }) => expect(listeningAddresses(stack.info.pids.driver)).toEqual([]),
  { skip: withoutProc },
);

/** The addresses on which a process listens over TCP; those of IPv6 in the kernel's own notation. */
function listeningAddresses(pid: number): string[] {
  const sockets = descriptorsOf(pid);
  return ["tcp", "tcp6"].flatMap((table) =>
    readFileSync(`/proc/net/${table}`, "utf8")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      // State, field 4, of a listener: TCP_LISTEN.
      .filter(([, , , state, , , , , , inode]) => state === "0A" && sockets.includes(`socket:[${inode}]`))
      .map(([, local = ""]) => readableAddress(local.split(":")[0]!)),
  );
}

/** IPv4 comes as eight hexadecimal digits, in the order of bytes of the machine. */
const readableAddress = (hex: string): string =>
  hex.length === 8 ? [...Buffer.from(hex, "hex")].toReversed().join(".") : hex;

// Callers

scenario("SE-06 a sandbox's token does not open what users may do", async ({ stack }) => {
  expect(await refusal(listSandboxesWith(tokenOf(randomUUID(), stack), stack))).toEqual({
    code: "PERMISSION_DENIED",
    message: "sandbox principals may not call this method",
  });
});

scenario("SE-07 a token that the gateway did not sign opens nothing", async ({ stack }) => {
  const [signed, other] = [tokenOf(randomUUID(), stack), tokenOf(randomUUID(), stack)];
  const forged = [...signed.split(".").slice(0, 2), other.split(".")[2]].join(".");
  const { code } = await refusal(listSandboxesWith(forged, stack));
  expect(code).toBe("UNAUTHENTICATED");
});

function listSandboxesWith(token: string, { gateway: { api } }: RunningStack) {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return unary(api, api.ListSandboxes, {}, { deadlineMs: 5_000, metadata });
}

scenario(
  "SE-08 users without credentials are refused, unless the gateway was told otherwise",
  async (given) => {
    const auth = { allow_unauthenticated_users: false };
    const { gateway } = await given.startStack({ gatewayTable: { auth } });
    expect(await refusal(gateway.listSandboxes())).toEqual({
      code: "UNAUTHENTICATED",
      message: "missing authorization header",
    });
    expect((await gateway.health()).status).toBe("SERVICE_STATUS_HEALTHY");
  },
);

/** A token like the one that a sandbox gets, made with the key that the harness gave the gateway. */
function tokenOf(sandboxId: string, { info }: RunningStack): string {
  const { openshell } = Bun.TOML.parse(readFileSync(info.config, "utf8")) as {
    openshell: { gateway: { gateway_jwt: Record<"signing_key_path" | "kid_path" | "gateway_id", string> } };
  };
  const { signing_key_path, kid_path, gateway_id } = openshell.gateway.gateway_jwt;
  const kid = readFileSync(kid_path, "utf8").trim();
  const issuer = `openshell-gateway:${gateway_id}`;
  const [iss, aud, iat] = [issuer, issuer, Math.floor(Date.now() / 1000)];
  const claims = {
    sub: `spiffe://openshell/sandbox/${sandboxId}`,
    iss,
    aud,
    iat,
    exp: 0,
    sandbox_id: sandboxId,
  };
  const signed = [{ typ: "JWT", alg: "EdDSA", kid }, claims]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".");
  const signature = sign(null, Buffer.from(signed), createPrivateKey(readFileSync(signing_key_path)));
  return `${signed}.${signature.toString("base64url")}`;
}

// Where the token is not

/** Any JSON Web Token. */
const TOKEN = /eyJ[\w-]{8,}\.eyJ[\w-]+\.[\w-]+/;

/** All that others can see of a sandbox, by where they see it. */
const VIEWS: Record<string, (stack: RunningStack, sandbox: Sandbox) => Promise<unknown> | unknown> = {
  "a command's environment": async (_, sandbox) => (await sandbox.exec(["env"])).stdout,
  "its container's description": (stack, sandbox) => withoutPodmanDriver || inspect(stack, sandbox.id),
  "arguments and environments of the run's processes": ({ info }, sandbox) =>
    processTable().filter(({ environment }) =>
      [info.folder, sandbox.id].some((mark) => environment.some((entry) => entry.includes(mark))),
    ),
  "the gateway's answers": async ({ gateway }, sandbox) => [
    await gateway.getSandbox(sandbox.name),
    await sandbox.logs(),
  ],
  "the gateway's events": async (_, sandbox) => {
    for await (const event of sandbox.watch({ follow_status: true, follow_events: true })) return event;
  },
  "the driver's answers": async (stack) => (await stack.calls()).map(({ responses }) => responses),
  "the logs of the run": ({ info }) =>
    eventually(() => logsUnder(dirname(info.folder)), { what: "read all logs while sandboxes come and go" }),
  "what a failure shows": (stack) => stack.excerpts(0),
};

const logsUnder = (folder: string): string[] =>
  [...new Bun.Glob("**/*.log").scanSync(folder)].map((file) => readFileSync(join(folder, file), "utf8"));

scenario(
  "SE-09 a sandbox's token is in no environment, argument, label, answer, event or log",
  async (given) => {
    const { stack, gateway } = given;
    const sandbox = await gateway.readySandbox();
    expect(tokenOf(sandbox.id, stack)).toMatch(TOKEN);
    for (const [where, look] of Object.entries(VIEWS)) {
      const seen = JSON.stringify(await look(stack, sandbox));
      expect({ where, nothing: seen.length < 3 }).toEqual({ where, nothing: false });
      expect({ where, token: TOKEN.test(seen) }).toEqual({ where, token: false });
    }
  },
);

scenario(
  "SE-10 commands in a sandbox cannot read its token",
  async ({ anySandbox }) => {
    const sandbox = await anySandbox();
    const { stdout, exitCode } = await sandbox.exec(["cat", "/etc/openshell/auth/sandbox.jwt"]);
    expect(stdout).toBe("");
    expect(exitCode).not.toBe(0);
  },
  {
    // There the file is missing for everybody, which would pass for a file that is kept from commands.
    skip:
      !parts().engine.real &&
      !parts().supervisor.real &&
      "commands in the fake engine's sandboxes see this machine's files, and the token is not among them",
  },
);
