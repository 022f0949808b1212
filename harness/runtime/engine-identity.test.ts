// SPDX-License-Identifier: Apache-2.0

/** Sockets that are named for Podman's, and are not: small servers in the other's place. */
import { ROOT } from "../base/root.ts";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine } from "./engine.ts";
import { shortCommand } from "../base/short-command.ts";
import { socketPath, socketProblem, whyUnreachable } from "../base/socket.ts";

const folder = mkdtempSync(join(tmpdir(), "ei-"));
const closers: (() => unknown)[] = [];
afterAll(() => {
  for (const close of closers) close();
  rmSync(folder, { recursive: true });
});

let served = 0;
const nextSocket = () => join(folder, `${++served}.sock`);

/** Serves HTTP; answers by path, and anything else with 404, as Docker does. */
function http(answers: Record<string, unknown>, server?: string): string {
  const unix = nextSocket();
  const headers: Record<string, string> = server ? { server } : {};
  const web = Bun.serve({
    unix,
    fetch(request) {
      const answer = answers[new URL(request.url).pathname];
      if (answer === undefined) return new Response("404 page not found\n", { status: 404, headers });
      return Response.json(answer, { headers });
    },
  });
  closers.push(() => web.stop(true));
  return unix;
}

/** Serves whatever is done with a connection. */
async function raw(onConnection: (socket: Socket) => void): Promise<string> {
  const path = nextSocket();
  const server = createServer((socket) => {
    socket.on("error", () => {});
    closers.push(() => socket.destroy());
    onConnection(socket);
  });
  closers.push(() => server.close());
  await new Promise<void>((done) => server.listen(path, done));
  return path;
}

const DOCKER = { Platform: { Name: "Docker Engine - Community" }, Version: "27.3.1" };
const DEBIANS_DOCKER = { Platform: { Name: "" }, Components: [{ Name: "Engine" }], Version: "20.10.24" };
const OLD_PODMAN = { Components: [{ Name: "Podman Engine", Version: "3.4.2" }], Version: "3.4.2" };
const INFO = "/v4.0.0/libpod/info";

describe("an engine's socket that is another server's", () => {
  test.each<[string, () => string | Promise<string>]>([
    ["Docker Engine 27.3.1", () => http({ "/version": DOCKER })],
    ["Docker Engine 20.10.24", () => http({ "/version": DEBIANS_DOCKER }, "Docker/20.10.24+dfsg1 (linux)")],
    ["Podman 3.4.2", () => http({ "/version": OLD_PODMAN }, "Libpod/3.4.2 (linux)")],
    ["an HTTP server that is not Podman", () => http({})],
    ["an HTTP server that is not Podman", () => http({ [INFO]: { status: "fine" }, "/version": ["x"] })],
    ["an HTTP server that is not Podman", () => http({ [INFO]: null, "/version": { Components: "x" } })],
    ["a server that does not speak HTTP", () => raw((socket) => socket.end("SSH-2.0-OpenSSH_9.6\r\n"))],
    ["a server that closes the connection without an answer", () => raw((socket) => socket.end())],
    ["a server that does not answer within 200 ms", () => raw(() => {})],
  ])("is told by what was found: %s", async (found, serve) => {
    const socket = await serve();
    await expect(new Engine(socket).info(200)).rejects.toThrow(
      `engine on ${socket}: found ${found}, and the API service of Podman 4.0 or later was expected`,
    );
  });

  test("Podman's own trouble is told in its words", async () => {
    const version = { Components: [{ Name: "Podman Engine", Version: "5.4.2" }] };
    const socket = http({ "/version": version });
    await expect(new Engine(socket).info()).rejects.toThrow("GET info: 404 404 page not found");
  });

  test.each(["doctor", "with -- true", "check --socket SOCKET --backend podman"])(
    "%s says so, with exit code 2",
    async (line) => {
      const socket = http({ "/version": DOCKER });
      const argv = line.split(" ").map((word) => (word === "SOCKET" ? socket : word));
      const { stdout, stderr, exitCode } = await shortCommand([process.execPath, "harness.ts", ...argv], {
        cwd: ROOT,
        deadlineMs: 30_000,
        env: {
          PATH: process.env.PATH,
          HOME: process.env.HOME,
          OPENSHELL_E2E_RUN_DIR: join(folder, "runs"),
          OPENSHELL_E2E_REPORTS: join(folder, "reports"),
          OPENSHELL_PODMAN_SOCKET: `unix://${socket}`,
          OPENSHELL_SANDBOX_IMAGE: "localhost/x",
        },
      });
      const said = `${stdout}${stderr}`;
      expect(said).toContain(
        `engine on ${socket}: found Docker Engine 27.3.1, and the API service of Podman`,
      );
      expect(said).not.toMatch(/^\s+at /m);
      expect(exitCode).toBe(2);
    },
  );
});

describe("a socket", () => {
  test.each([
    ["/run/x.sock", "/run/x.sock"],
    ["unix:///run/x.sock", "/run/x.sock"],
    ["unix:/run/x.sock", "/run/x.sock"],
    ["unix:x.sock", join(process.cwd(), "x.sock")],
    ["x.sock", join(process.cwd(), "x.sock")],
  ])("may be named as %s", (named, path) => {
    expect(socketPath(named)).toBe(path);
  });

  test.each([
    ["/no/such.sock", "no such socket"],
    ["unix:///no/such.sock", "no such socket"],
    [ROOT, "a folder, not a socket"],
    [import.meta.path, "a file, not a socket"],
    ["127.0.0.1:50051", "a TCP address, and the path of a Unix socket was expected"],
    ["localhost:50051", "a TCP address, and the path of a Unix socket was expected"],
    ["[::1]:50051", "a TCP address, and the path of a Unix socket was expected"],
    ["tcp://10.0.0.1:2375", "a TCP address, and the path of a Unix socket was expected"],
    ["https://host:2376", "a TCP address, and the path of a Unix socket was expected"],
  ])("%s is told for what it is", (named, problem) => {
    expect(socketProblem(named)).toBe(problem);
  });

  test("that nobody listens on, and one that answers", async () => {
    const path = await raw(() => {});
    expect(await whyUnreachable(path)).toBeUndefined();
    const dead = nextSocket();
    const leaves = `require("net").createServer().listen(${JSON.stringify(dead)}, () => process.kill(process.pid, 9))`;
    await shortCommand([process.execPath, "-e", leaves]);
    expect(socketProblem(dead)).toBe(false);
    expect(await whyUnreachable(dead)).toBe("nobody listens there");
    expect(await whyUnreachable(join(folder, "none"))).toBe("no such socket");
  });

  test.skipIf(process.getuid?.() !== 0)("of another user", async () => {
    const path = await raw(() => {});
    const script = `
      import { whyUnreachable } from ${JSON.stringify(join(import.meta.dir, "..", "base", "socket.ts"))};
      process.setgid(65534); process.setuid(65534);
      console.log(await whyUnreachable(process.argv[2]));`;
    const file = join(folder, "other-user.ts");
    writeFileSync(file, script);
    await Bun.$`chmod 755 ${folder} && chmod 600 ${path}`.quiet();
    const { stdout } = await shortCommand([process.execPath, file, path]);
    expect(stdout.toString().trim()).toBe("permission denied (it is user 0's, mode 0600)");
  });
});
