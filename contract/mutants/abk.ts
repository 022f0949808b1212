// SPDX-License-Identifier: Apache-2.0

/** Drivers that break what they say of themselves, their transport, or their recovery. */
import { status } from "../../proto/grpc.ts";
import type { Interceptors } from "../../keeper/tap.ts";
import { patient } from "../check.ts";
import { mutant, refusal } from "../mutant.ts";

// A Transport and start-up

mutant("Refuses callers that name another :authority than a gateway does", ["DC-1"], {
  GetCapabilities: async (_, pass, { authority }) => {
    if (authority !== "[::]:50051") throw refusal("UNIMPLEMENTED");
    return pass();
  },
});

mutant("Fails GetCapabilities", ["DC-1", "DC-2", "DC-10", "DC-12", "DC-13", "DC-157"], {
  GetCapabilities: async () => {
    throw refusal("INTERNAL");
  },
});

mutant("Serves no more than 16 calls at a time", ["DC-10"], () => {
  let underWay = 0;
  return {
    StopSandbox: async (_, pass) => {
      if (underWay >= 16) throw refusal("RESOURCE_EXHAUSTED");
      underWay++;
      return pass().finally(() => underWay--);
    },
  };
});

mutant("Answers nothing else while somebody watches", ["DC-10"], () => {
  let watched = false;
  return {
    WatchSandboxes: (watch) => {
      watched = true;
      return watch.send;
    },
    GetCapabilities: (_, pass) => (watched ? new Promise(() => {}) : pass()),
  };
});

mutant("Refuses metadata that it does not know", ["DC-11"], {
  ValidateSandboxCreate: async (_, pass, { metadata }) => {
    const known = /^(traceparent|user-agent|content-type|te|grpc-.*|:.*)$/;
    if (Object.keys(metadata.getMap()).some((key) => !known.test(key))) throw refusal("INVALID_ARGUMENT");
    return pass();
  },
});

mutant("Refuses fields that it does not know", ["DC-11"], {
  ListSandboxes: async (_, pass, { request }) => {
    if (request.length > 0) throw refusal("INVALID_ARGUMENT");
    return pass();
  },
});

// B Capabilities and listeners

mutant("Takes 4 s for GetCapabilities", ["DC-12"], {
  GetCapabilities: async (_, pass) => {
    await Bun.sleep(patient(4_000));
    return pass();
  },
});

mutant("Has no name", ["DC-13"], {
  GetCapabilities: async (_, pass) => ({ ...(await pass()), driver_name: "" }),
});

mutant("Has no version", ["DC-13"], {
  GetCapabilities: async (_, pass) => ({ ...(await pass()), driver_version: "" }),
});

mutant("Changes its mind about who manages the lifecycle", ["DC-13"], () => {
  let manages = false;
  return {
    GetCapabilities: async (_, pass) => ({
      ...(await pass()),
      gateway_manages_lifecycle: (manages = !manages),
    }),
  };
});

mutant("Fails GetGatewayListenerRequirements", ["DC-16", "DC-17", "DC-18"], {
  GetGatewayListenerRequirements: async () => {
    throw refusal("NOT_FOUND");
  },
});

const PORTLESS = "10.89.0.1";
for (const [what, address] of [
  ["a wildcard address", (port: string) => `0.0.0.0:${port}`],
  ["an IPv6 wildcard address", (port: string) => `[::]:${port}`],
  ["a multicast address", (port: string) => `224.0.0.1:${port}`],
  ["port 0", () => `${PORTLESS}:0`],
  ["another port than the gateway's", (port: string) => `${PORTLESS}:${Number(port) + 1}`],
  ["an address without a port", () => PORTLESS],
  ["a host's name", (port: string) => `localhost:${port}`],
  ["an IPv6 address without brackets", (port: string) => `fd00::1:${port}`],
] as const)
  mutant(`Requires a listener on ${what}`, ["DC-17"], {
    GetGatewayListenerRequirements: async (_, pass) => {
      const { requirements } = await pass();
      const port = requirements[0]?.exact_bind_address?.split(":").at(-1) ?? "";
      return { requirements: [{ reason: "broken on purpose", exact_bind_address: address(port) }] };
    },
  });

mutant("Requires a listener without a selector", ["DC-17"], {
  GetGatewayListenerRequirements: async () => ({ requirements: [{ reason: "broken on purpose" }] }),
});

mutant("Requires a listener without a reason", ["DC-18"], {
  GetGatewayListenerRequirements: async (_, pass) => ({
    requirements: (await pass()).requirements.map((requirement) => ({ ...requirement, reason: "" })),
  }),
});

// K Restart and recovery

/** A driver that keeps its sandboxes in its memory: those of before its start it does not know. */
function remembering() {
  const made = new Set<string>();
  const CreateSandbox: Interceptors["CreateSandbox"] = async (request, pass) => {
    const response = await pass();
    made.add(request.sandbox?.id ?? "");
    return response;
  };
  return { made, CreateSandbox };
}

mutant("Lists only what it created since it was started", ["DC-109"], () => {
  const { made, CreateSandbox } = remembering();
  return {
    CreateSandbox,
    ListSandboxes: async (_, pass) => ({
      sandboxes: (await pass()).sandboxes.filter(({ id }) => made.has(id)),
    }),
  };
});

mutant("Deletes only what it created since it was started", ["DC-109", "DC-157"], () => {
  const { made, CreateSandbox } = remembering();
  return {
    CreateSandbox,
    DeleteSandbox: (request, pass) =>
      made.has(request.sandbox_id) || !request.sandbox_id ? pass() : Promise.resolve({ deleted: false }),
  };
});

mutant("Says NOT_FOUND of a sandbox while its backend is gone", ["DC-97", "DC-111"], {
  GetSandbox: (_, pass) =>
    pass().catch((error: Refusal) => {
      throw error.code === status.INTERNAL ? refusal("NOT_FOUND") : error;
    }),
});

mutant("Lists nothing while its backend is gone", ["DC-111"], {
  ListSandboxes: (_, pass) => pass().catch(() => ({ sandboxes: [] })),
});

mutant("Does not find its backend again", ["DC-111"], () => {
  let lost: Refusal | undefined;
  return {
    ListSandboxes: (_, pass) => {
      if (lost) throw lost;
      return pass().catch((error: Refusal) => {
        throw (lost = error);
      });
    },
  };
});

type Refusal = Error & { code: status };
