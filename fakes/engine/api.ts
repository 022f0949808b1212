// SPDX-License-Identifier: Apache-2.0

/** The API: its routes, and what each does with the parts of the engine. */
import { hostname, release } from "node:os";
import type { Container, Spec } from "./container.ts";
import { Containers, type Parts } from "./containers.ts";
import { Events } from "./events.ts";
import { checkHealth } from "./health.ts";
import { answer, ApiError, empty, fail, flag, jsonBody, timeout } from "./http.ts";
import { GO_ARCHITECTURE, Images } from "./images.ts";
import { inspect, listEntry } from "./inspect.ts";
import { Lifecycle } from "./lifecycle.ts";
import { logs } from "./logs.ts";
import { Networks } from "./networks.ts";
import { Secrets } from "./secrets.ts";
import { VERSION } from "./settings.ts";
import type { State } from "./state.ts";
import { Volumes } from "./volumes.ts";

interface Call {
  /** The part of the path that the route leaves open, decoded. */
  name: string;
  query: URLSearchParams;
  request: Request;
}

type Handler = (call: Call) => Response | Promise<Response>;

/** Answers requests with what is on `state`. */
export class Api {
  readonly #parts: Parts;
  readonly #containers: Containers;
  readonly #lifecycle: Lifecycle;
  readonly #routes: { method: string; pattern: RegExp; handler: Handler }[];

  constructor(private readonly state: State) {
    const events = new Events(state);
    this.#parts = {
      state,
      events,
      images: new Images(state, events),
      volumes: new Volumes(state, events),
      secrets: new Secrets(state),
      networks: new Networks(state, events),
    };
    this.#containers = new Containers(this.#parts);
    this.#lifecycle = new Lifecycle(this.#containers);
    this.#routes = Object.entries(this.#handlers()).map(([route, handler]) => {
      const [method = "", path = ""] = route.split(" ");
      return { method, pattern: new RegExp(`^${path.replace("*", "(.+)")}$`), handler };
    });
  }

  /** Takes over the containers of an earlier engine. */
  adopt(): Promise<void> {
    return this.#lifecycle.adoptAll(this.state.path("containers"));
  }

  /** Method, path with `*` for a name, and what it does. The first match counts. */
  #handlers(): Record<string, Handler> {
    const { events, images, volumes, secrets, networks } = this.#parts;
    const containers = this.#containers;
    const lifecycle = this.#lifecycle;
    return {
      "GET /_ping": () => new Response("OK"),
      "GET /info": () => answer(200, this.#info()),
      "GET /events": ({ query, request }) => events.answer(query, request.signal),

      "POST /images/import": async ({ query, request }) =>
        answer(200, await images.import(query, await request.bytes())),
      "POST /images/pull": ({ query }) => images.pull(query),
      "GET /images/*/json": ({ name }) => answer(200, images.inspect(name)),
      "GET /images/*/exists": ({ name }) =>
        images.find(name) ? empty(204) : fail(404, `failed to find image ${name}`),
      "DELETE /images/*": ({ name }) => this.#removeImage(name),

      "POST /volumes/create": async ({ request }) => answer(201, volumes.create(await jsonBody(request))),
      "GET /volumes/json": ({ query }) => answer(200, volumes.list(query)),
      "GET /volumes/*/json": ({ name }) => answer(200, volumes.get(name) ?? fail(404, "no such volume")),
      "DELETE /volumes/*": (call) => this.#removeVolume(call),

      "POST /secrets/create": async ({ query, request }) =>
        answer(200, { ID: secrets.create(query, await request.bytes()).ID }),
      "GET /secrets/json": ({ query }) => answer(200, secrets.list(query)),
      "GET /secrets/*/json": ({ name }) => answer(200, secrets.named(name)),
      "DELETE /secrets/*": ({ name }) => (secrets.remove(name), empty(204)),

      "POST /networks/create": async ({ request }) => answer(200, networks.create(await jsonBody(request))),
      "GET /networks/json": ({ query }) => answer(200, networks.list(query)),
      "GET /networks/*/json": ({ name }) =>
        answer(200, networks.find(name) ?? fail(404, "network not found")),
      "DELETE /networks/*": (call) => this.#removeNetwork(call),

      "POST /containers/create": async ({ request }) =>
        answer(201, { Id: containers.create(await jsonBody<Spec>(request)).id, Warnings: [] }),
      "GET /containers/json": ({ query }) => answer(200, containers.list(query).map(listEntry)),
      "GET /containers/*/json": ({ name }) => answer(200, inspect(containers.named(name))),
      "GET /containers/*/logs": ({ name, query, request }) =>
        logs(containers.named(name), query, request.signal),
      "GET /containers/*/healthcheck": async ({ name }) =>
        answer(200, await checkHealth(containers, containers.named(name))),
      "POST /containers/*/start": async ({ name }) =>
        empty((await lifecycle.start(containers.named(name))) ? 204 : 304),
      "POST /containers/*/stop": async ({ name, query }) =>
        empty((await lifecycle.stop(containers.named(name), timeout(query))) ? 204 : 304),
      "POST /containers/*/kill": async ({ name, query }) => {
        await lifecycle.kill(containers.named(name), query.get("signal") || "KILL");
        return empty(204);
      },
      "POST /containers/*/pause": ({ name }) => (lifecycle.pause(containers.named(name)), empty(204)),
      "POST /containers/*/unpause": ({ name }) => (lifecycle.unpause(containers.named(name)), empty(204)),
      "POST /containers/*/wait": async ({ name }) =>
        new Response(`${await lifecycle.wait(containers.named(name))}\n`),
      "DELETE /containers/*": (call) => this.#removeContainer(call),
    };
  }

  // Removal: what is in use goes only by force, and its users with it

  async #removeUsers(users: Container[]): Promise<void> {
    for (const user of users) await this.#lifecycle.remove(user, true, 0);
  }

  async #removeImage(reference: string): Promise<Response> {
    const { images } = this.#parts;
    const image = images.find(reference) ?? fail(404, "image not known", reference);
    const names = images.namesTaken(image, reference);
    const [user] = this.#containers.using(({ imageId }) => imageId === image.Id);
    if (user && names.length === image.RepoTags.length) {
      fail(409, "image is in use by a container", `image used by ${user.id}`);
    }
    return answer(200, images.untag(image, names));
  }

  async #removeVolume({ name, query }: Call): Promise<Response> {
    const { volumes } = this.#parts;
    if (!volumes.get(name)) fail(404, "no such volume", `no volume with name "${name}" found`);
    const users = this.#containers.using(({ mounts }) =>
      mounts.some(({ type, source }) => type === "volume" && source === name),
    );
    if (users.length > 0 && !flag(query, "force")) {
      const ids = users.map(({ id }) => id).join(", ");
      fail(409, "volume is being used", `volume ${name} is being used by the following container(s): ${ids}`);
    }
    await this.#removeUsers(users);
    volumes.remove(name);
    return empty(204);
  }

  async #removeNetwork({ name: nameOrId, query }: Call): Promise<Response> {
    const { networks } = this.#parts;
    const network = networks.named(nameOrId);
    const { name } = network;
    const users = this.#containers.using((container) => container.networks.includes(name));
    if (users.length > 0 && !flag(query, "force")) {
      const use = `"${name}" has associated containers with it. Use -f to forcibly delete containers and pods`;
      fail(500, "network is being used", use);
    }
    await this.#removeUsers(users);
    networks.remove(network);
    return answer(200, [{ Name: name, Err: null }]);
  }

  async #removeContainer({ name, query }: Call): Promise<Response> {
    const container = this.#containers.find(name);
    if (container) await this.#lifecycle.remove(container, flag(query, "force"), timeout(query));
    else if (!flag(query, "ignore")) {
      fail(404, "no such container", `no container with ID or name "${name}" found`);
    }
    return empty(204);
  }

  #info(): object {
    return {
      host: {
        arch: GO_ARCHITECTURE,
        os: "linux",
        hostname: hostname(),
        kernel: release(),
        cgroupManager: "cgroupfs",
        cgroupVersion: "v2",
        cgroupControllers: ["cpu", "io", "memory", "pids"],
        networkBackend: "netavark",
        rootlessNetworkCmd: "pasta",
        eventLogger: "file",
        ociRuntime: { name: "crun" },
        security: { rootless: false, seccompEnabled: false, selinuxEnabled: false, apparmorEnabled: false },
      },
      store: { graphDriverName: "overlay", graphRoot: this.state.root },
      version: { APIVersion: VERSION, Version: `${VERSION}+fake`, OsArch: `linux/${GO_ARCHITECTURE}` },
    };
  }

  /** Never rejects. */
  async answer(request: Request): Promise<Response> {
    const { pathname, searchParams: query } = new URL(request.url);
    // Any version that Podman has had, with or without the libpod part where Docker's API has the same call.
    const path = pathname.replace(/^\/v\d+\.\d+(\.\d+)?(?=\/)/, "").replace(/^\/libpod(?=\/)/, "");
    const response = await this.#route(request, path, query).catch((error: Error) => failure(error, request));
    response.headers.set("Api-Version", "1.41");
    response.headers.set("Libpod-Api-Version", VERSION);
    response.headers.set("Server", `Libpod/${VERSION} (linux)`);
    return response;
  }

  async #route(request: Request, path: string, query: URLSearchParams): Promise<Response> {
    for (const { method, pattern, handler } of this.#routes) {
      const found = request.method === method ? pattern.exec(path) : null;
      if (found) return handler({ name: decodeURIComponent(found[1] ?? ""), query, request });
    }
    console.error(`${request.method} ${path}: not served by this fake engine`);
    return new Response("Not Found\n", { status: 404 });
  }
}

function failure(error: Error, { method, url }: Request): Response {
  const { status, reason, message } =
    error instanceof ApiError ? error : { status: 500, reason: error.message, message: error.message };
  if (!(error instanceof ApiError)) console.error(`${method} ${new URL(url).pathname}: ${error.stack}`);
  return answer(status, { cause: reason, message, response: status });
}
