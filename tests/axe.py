"""What axe-core, the accessibility checker, says of a page that playwright has open. The script comes with a package; nothing
is fetched."""

SERIOUS = ("serious", "critical")


def violations(page, context=None, rules=()):
    """The serious and critical violations on `page`, one short string each; a CSS selector as `context` looks at that part alone,
    names as `rules` at those alone.

    Returns e.g. `["critical: image-alt (2): Images must have alternative text: #figure > img"]`: impact, rule, how many
    places, what the rule says, the first place.
    """
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = Axe().run(page, context=context, options=options).response["violations"]
    return [f"{v['impact']}: {v['id']} ({len(v['nodes'])}): {v['help']}: {' '.join(map(str, v['nodes'][0]['target']))}"
            for v in found if v["impact"] in SERIOUS]
