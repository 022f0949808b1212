// SPDX-License-Identifier: Apache-2.0

/** Secrets: a file each that only the engine reads, and what the API shows of it, which is never the value. */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { timestamp } from "./clock.ts";
import { fail, type Filters, matcher } from "./http.ts";
import { type Collection, randomHex, type State } from "./state.ts";

const MAX_BYTES = 512_000;

export interface Secret {
  ID: string;
  CreatedAt: string;
  UpdatedAt: string;
  Spec: { Name: string; Driver: { Name: "file"; Options: { path: string } }; Labels: Record<string, string> };
}

const FILTERS: Filters<Secret> = {
  name: ({ Spec }, wanted) => wanted.some((want) => Spec.Name.includes(want)),
};

export class Secrets {
  readonly #all: Collection<Secret>;

  constructor(private readonly state: State) {
    this.#all = state.collection("secrets");
  }

  create(query: URLSearchParams, value: Uint8Array): Secret {
    const name = query.get("name") || fail(500, "secret name cannot be empty");
    if (this.#all.has(name)) fail(500, "secret name in use", name);
    if (value.length === 0 || value.length >= MAX_BYTES) {
      fail(500, `secret data must be larger than 0 and less than ${MAX_BYTES} bytes`);
    }
    const now = timestamp();
    const secret: Secret = {
      ID: randomHex(25),
      CreatedAt: now,
      UpdatedAt: now,
      Spec: {
        Name: name,
        Driver: { Name: "file", Options: { path: this.state.path("secrets") } },
        Labels: JSON.parse(query.get("labels") || "{}"),
      },
    };
    writeFileSync(this.#file(secret), value, { mode: 0o600 });
    this.#all.set(name, secret);
    return secret;
  }

  #file({ ID }: Secret): string {
    return this.state.path("secrets", ID);
  }

  value(secret: Secret): Uint8Array {
    return readFileSync(this.#file(secret));
  }

  /** @throws ApiError with `status`, which is 404 where the secret itself is asked for */
  named(nameOrId: string, status = 404): Secret {
    return (
      this.#all.get(nameOrId) ??
      [...this.#all.values()].find(({ ID }) => ID === nameOrId) ??
      fail(status, "no such secret", `no secret with name or id "${nameOrId}"`)
    );
  }

  list(query: URLSearchParams): Secret[] {
    return [...this.#all.values()].filter(matcher(query, FILTERS));
  }

  remove(nameOrId: string): void {
    const secret = this.named(nameOrId);
    this.#all.delete(secret.Spec.Name);
    rmSync(this.#file(secret), { force: true });
  }
}
