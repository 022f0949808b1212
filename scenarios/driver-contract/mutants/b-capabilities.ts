// SPDX-License-Identifier: Apache-2.0

/** Drivers that are wrong about their capabilities and listeners. */
import { patient } from "../../../harness/conformance/finding.ts";
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";

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
