"""The chat page in a real, headless Chromium: what a person sees, what an attacker does not get.

Chromium is the system's own (Debian: `apt-get install chromium`); nothing is downloaded.
"""

import shutil
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from agents_stream.sandbox import Sandbox
from tests.http.played_worker import PlayedWorker

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="no Chromium here: get one with `apt-get update && apt-get install -y chromium`",
)

ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "'\"><svg onload=window.pwned=1>",
    "</li></ol><iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "javascript:window.pwned=1",
    "{{constructor.constructor('window.pwned = 1')()}}",
]

CONTRAST = """element => {
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const text = light(parse(getComputedStyle(element).color));
    let behind = element;
    while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
        behind = behind.parentElement;
    const ground = light(parse(getComputedStyle(behind).backgroundColor));
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
}"""


@pytest.fixture
async def worker() -> AsyncIterator[PlayedWorker]:
    """Run a worker to talk to."""
    async with PlayedWorker() as running:
        yield running


@pytest.fixture
async def sandbox(worker: PlayedWorker) -> AsyncIterator[Sandbox]:
    """Run a sandbox beside that worker."""
    async with Sandbox(worker_url=worker.url) as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Run a headless Chromium."""
    async with async_playwright() as playwright:
        # The tests may run as root in a container, where Chromium's own sandbox cannot.
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        await running.close()


@pytest.fixture
def problems() -> list[str]:
    """Keep what the browser complained of; a test that provokes it empties the list."""
    return []


@pytest.fixture
async def page(browser: Browser, problems: list[str]) -> AsyncIterator[Page]:
    """Open a phone's page; every script error and refused content fails the test."""

    def complain(line: ConsoleMessage) -> None:
        # An answer with an error's status is logged too; the tests look at those themselves.
        if line.type == "error" and "Failed to load resource" not in line.text:
            problems.append(line.text)

    context = await browser.new_context(viewport={"width": 390, "height": 800})
    opened = await context.new_page()
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    opened.on("console", complain)
    opened.set_default_timeout(5_000)
    yield opened
    await context.close()
    assert problems == []


async def send(sandbox: Sandbox, path: str, body: dict[str, Any]) -> None:
    """Send what the gateway would."""
    async with aiohttp.ClientSession() as http, http.post(sandbox.url + path, json=body) as answer:
        assert answer.status == 200


async def start(page: Page, sandbox: Sandbox, contact: str = "maria-lopez") -> tuple[str, str]:
    """Start a conversation on the page; return its id and its session's."""
    await page.goto(f"{sandbox.url}/chat")
    await page.get_by_label("Contact id").fill(contact)
    await page.get_by_role("button", name="Start").click()
    await page.wait_for_url("**/chat/chat-*")
    path, _, query = page.url.partition("?session=")
    return path.rsplit("/", 1)[1], query


async def test_a_person_talks_with_the_agent(
    page: Page, sandbox: Sandbox, worker: PlayedWorker
) -> None:
    """The timer counts down by itself, the agent's words appear, an answer ends the timer."""
    conversation, session = await start(page, sandbox)
    await expect(page.get_by_role("heading", name="maria-lopez")).to_be_visible()
    await expect(page.get_by_text("open · collecting_data")).to_be_visible()
    timer = page.get_by_role("timer")
    await expect(timer).to_contain_text("Waiting for your answer")
    first = await timer.locator(".left").inner_text()
    assert first in {"5:57", "5:58", "5:59", "6:00"}
    share = await timer.locator(".bar").evaluate("bar => bar.style.getPropertyValue('--share')")
    assert 0.98 < float(share) <= 1
    await expect(timer.locator(".left")).not_to_have_text(first, timeout=2_000)

    log = page.get_by_role("log")
    await send(
        sandbox, "/whatsapp/messages", {"contactId": conversation, "message": "Como te llamas?"}
    )
    await expect(log.locator(".agent .text")).to_have_text("Como te llamas?")
    await expect(log).to_have_attribute("aria-live", "polite")

    await page.get_by_label("Message to the agent").fill("Me llamo Maria")
    await page.keyboard.press("Enter")
    await expect(log.locator(".customer .text")).to_have_text("Me llamo Maria")
    await expect(timer).to_have_count(0)
    await expect(page.get_by_text("No timer is running.")).to_be_visible()
    data = worker.events[-1]["data"]
    assert worker.events[-1]["name"] == "agent/customer.message"
    assert (data["sessionId"], data["content"]) == (session, "Me llamo Maria")

    await page.reload()
    await expect(log.locator(".line")).to_have_count(2)


async def test_a_timer_changes_its_look_towards_its_end(
    page: Page, sandbox: Sandbox, worker: PlayedWorker
) -> None:
    """A timer that is nearly over shows tenths and turns warm, then hot, then due."""
    _, session = await start(page, sandbox)
    await expect(page.get_by_role("timer")).to_be_visible()
    worker.arm(session, "promos.reply", 3.5, generation=9)
    pill = page.locator(".pill", has_text="Waiting for your choice")
    await expect(page.get_by_role("timer")).to_have_count(1)
    await expect(pill.locator(".left")).to_contain_text("s")
    for look in ("warm", "hot"):
        await expect(page.locator(f".pill.{look}")).to_be_visible()
    await expect(pill.locator(".left")).to_have_text("due")


async def test_words_are_shown_and_never_run(page: Page, sandbox: Sandbox) -> None:
    """Markup in messages, ids, products, outcomes and names is text: nothing of it runs."""
    evil = ATTACKS[1]
    _, session = await start(page, sandbox, contact=evil)
    conversation = page.url.split("/chat/")[1].split("?")[0]
    for attack in ATTACKS:
        body = {"contactId": conversation, "message": attack}
        await send(sandbox, "/whatsapp/messages", body)
        await page.get_by_label("Message to the agent").fill(attack)
        await page.keyboard.press("Enter")
        await send(sandbox, "/whatsapp/messages", {"contactId": attack, "message": attack})
    product = {"product_id": evil, "quantity": 1}
    await send(sandbox, "/crm/orders", {"contact_id": evil, "products": [product]})
    outcome = {"sessionId": session, "flow": evil, "status": evil, "action": evil}
    await send(sandbox, "/engine", outcome)

    lines = page.get_by_role("log").locator(".line")
    await expect(lines).to_have_count(2 * len(ATTACKS) + 2)
    told = await page.locator(".agent .text").all_inner_texts()
    assert told == ATTACKS
    await expect(page.get_by_role("heading", name=evil)).to_be_visible()
    targets = await page.locator("#conversations a").evaluate_all(
        "links => links.map((link) => link.getAttribute('href'))"
    )
    assert len(targets) == len(ATTACKS) + 1
    assert all(target.startswith("/chat/") for target in targets)
    for attack in ATTACKS:
        await page.goto(f"{sandbox.url}/chat/{quote(attack, safe='')}?session={quote(evil)}")
        await expect(page.locator(".agent .text")).to_have_text(attack)
        await expect(page.locator("#room-title")).to_have_text(attack)
        assert await page.evaluate("window.pwned") is None
    assert await page.locator(".app script, .app iframe, .app img[src='x']").count() == 0


async def test_the_policy_stops_what_the_code_might_miss(
    page: Page, sandbox: Sandbox, problems: list[str]
) -> None:
    """Were markup ever written into the page, the browser itself would refuse it."""
    await page.goto(f"{sandbox.url}/chat")
    refused = await page.evaluate(
        """() => {
            try { document.body.innerHTML = '<img src=x onerror="window.pwned = 1">'; }
            catch (error) { return error.name; }
        }"""
    )
    assert refused == "TypeError"
    assert await page.evaluate("window.pwned") is None
    assert [line for line in problems if "TrustedHTML" in line] == problems != []
    problems.clear()


async def test_a_line_that_was_not_sent_can_be_sent_again(
    page: Page, sandbox: Sandbox, worker: PlayedWorker
) -> None:
    """G2: a failed line says so and goes again with the same messageId, so never becomes two."""
    await start(page, sandbox)
    await expect(page.get_by_role("timer")).to_be_visible()
    worker.failing = (503, "Kafka is away")
    await page.get_by_label("Message to the agent").fill("Hola")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.post_data or ""))
    await page.get_by_role("button", name="Send").click()
    await expect(page.get_by_text("Not sent: Kafka is away")).to_be_visible()
    await expect(page.get_by_text("The worker does not answer.")).to_be_visible()
    worker.failing = None
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".line.customer.failed")).to_have_count(0)
    await expect(page.locator(".line.customer")).to_have_count(1)
    await expect(page.get_by_text("The worker does not answer.")).to_be_hidden()
    tries = [body for body in sent if "messageId" in body]
    assert len(tries) == 2
    assert tries[0] == tries[1]


async def test_the_keyboard_is_enough(page: Page, sandbox: Sandbox, worker: PlayedWorker) -> None:
    """Starting, choosing, writing and leaving need no mouse; Shift and Enter breaks a line."""
    await page.goto(f"{sandbox.url}/chat")
    await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Tab")
    await page.keyboard.type("maria")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/chat/chat-*")
    assert worker.events[-1]["name"] == "agent/promos.offered"
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Message to the agent")).to_be_focused()
    await expect(page.get_by_role("timer")).to_be_visible()
    await page.keyboard.type("uno")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("dos")
    await page.keyboard.press("Enter")
    await expect(page.locator(".customer .text")).to_have_text("uno\ndos")
    await expect(page.get_by_label("Message to the agent")).to_be_focused()
    await page.get_by_role("link", name="All conversations").press("Enter")
    await page.wait_for_url("**/chat")
    await expect(page.get_by_role("link", name="maria")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
async def test_it_fits_and_can_be_read(
    browser: Browser, sandbox: Sandbox, scheme: str, width: int
) -> None:
    """At phone and desk width, in the dark too: nothing overflows, the text has contrast."""
    context = await browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = await context.new_page()
    conversation, _ = await start(page, sandbox, contact="m" * 200)
    await send(sandbox, "/whatsapp/messages", {"contactId": conversation, "message": "word" * 500})
    await expect(page.locator(".agent")).to_be_visible()
    await expect(page.get_by_role("timer")).to_be_visible()
    wide = await page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    box = await page.get_by_role("button", name="Send").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= 800
    for selector in (
        ".agent",
        ".agent .meta",
        ".pill .name",
        ".pill .left",
        "#room-state",
        ".send",
    ):
        assert await page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector
    await context.close()


async def test_a_foreign_page_can_neither_order_nor_read(
    page: Page, sandbox: Sandbox, problems: list[str]
) -> None:
    """A page of another origin, open in the same browser, changes and reads nothing here."""

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text="<title>foreign</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await page.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    results = await page.evaluate(
        """async (url) => {
            const tries = [
                fetch(url + "/api/chat/start", {method: "POST", mode: "no-cors", body: "{}"}),
                fetch(url + "/whatsapp/messages", {method: "POST", mode: "no-cors",
                    body: JSON.stringify({contactId: "c", message: "x"})}),
                fetch(url + "/faults", {method: "POST", body: "{}",
                    headers: {"Content-Type": "application/json"}}),
                fetch(url + "/books", {method: "DELETE"}),
                fetch(url + "/books"),
            ];
            return (await Promise.allSettled(tries)).map((one) => one.value?.status ?? "refused");
        }""",
        sandbox.url,
    )
    await runner.cleanup()
    assert results == ["refused"] * 5
    problems.clear()
    assert list(sandbox.books.select()) == []
    assert sandbox.conversations.listed() == []
    assert sandbox.faults.in_force() == ()
