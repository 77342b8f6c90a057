"""The plain pages: what they show, and that nothing a customer wrote can run on them."""

import re
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.asking import NO_TLS, get, many
from tests.http.shown_worker import Cluster, Log, run_cluster

PAGES = ("/", "/session", "/timers", "/dead-letters", "/cluster")
ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></textarea></pre><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% include 'login.html' %}",
    "<!-- ",
    "\u202e\u2066 reversed",
    "&lt;b&gt;",
]


class Skeleton(HTMLParser):
    """The structure of a page: its elements with the names of their attributes, and no text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        targets = [value or "" for name, value in attrs if name in ("href", "src", "action")]
        self.links += [target for target in targets if target != "#content"]

    def handle_comment(self, data: str) -> None:
        """Note a comment: there is none in our templates' output."""
        self.elements.append(("comment", (data,)))

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text.append(data)


async def page(url: str, expected: int = 200) -> str:
    """The HTML at an address, asked for as a browser does."""
    async with httpx.AsyncClient(verify=NO_TLS, headers={"Accept": "text/html"}) as client:
        answer = await client.get(url)
    assert answer.status_code == expected, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def words_of(html: str) -> str:
    """The text of a page, with single spaces."""
    return " ".join(" ".join(Skeleton(html).text).split())


def world(text: str) -> Log:
    """A session on whose pages `text` stands wherever somebody else decides what stands there."""
    log = Log()
    ids = {"workspaceId": text, "agentId": text, "conversationId": text, "contactId": text}
    log.start(text, **ids, mode=text)
    log.event(text, "agent/data.captured", data={text: text, "nombre": text})
    state = {text: text, "list": [text], "pack_seleccionado": text}
    log.event(text, "agent/session.updated", state=state)
    log.event(text, "agent/customer.message", conversationId=text, messageId=text, content=text)
    told = {"conversationId": text, "workspaceId": text}
    log.event(text, "agent/proactive.send", messageType="reminder", content=text, **told)
    log.result(text, "failed", retryable=False, tool=text, error={"code": text, "message": text})
    log.event(text, "agent/proactive.send", messageType="reminder", content=text, **told)
    log.event(text, "agent/promos.offered", packOptions=[text], **told)
    letter = {"reason": text, "detail": text, "key": text, "value": text, "encoding": "utf-8"}
    log.bury(0, orjson.dumps({**letter, "source": {"topic": text, "partition": text}}))
    log.bury(1, b"\xff", key=text.encode())
    return log


def with_own_words(cluster: Cluster, text: str) -> list[str]:
    """Every page, with `text` in whatever its address takes as well."""
    search = urlencode({"q": text, "mode": text, "workspace": text})
    paths = [
        "/",
        f"/?{search}",
        f"/session?id={quote(text, safe='')}",
        f"/session?{urlencode({'id': 'nobody ' + text})}",
        f"/?{urlencode({'status': 'no ' + text})}",
        f"/timers?{urlencode({'before': 'no ' + text})}",
        "/timers",
        "/dead-letters",
        "/cluster",
    ]
    return [cluster.urls[0] + path for path in paths]


async def skeletons(text: str) -> list[Skeleton]:
    """The structure of every page of a world that says `text`."""
    async with run_cluster(world(text)) as cluster:
        cluster.workers[0].members_told.append(cluster.workers[0].members_told[0])
        pages = [await get(url) for url in with_own_words(cluster, text)]
    assert [answer.status_code for answer in pages] == [200, 200, 200, 404, 400, 400, 200, 200, 200]
    return [Skeleton(answer.text) for answer in pages]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_others_wrote_is_text_and_nothing_else(attack: str) -> None:
    """The structure of every page is the same whatever a customer or an engine wrote."""
    plain, attacked = await skeletons("harmless"), await skeletons(attack)
    for expected, found in zip(plain, attacked, strict=True):
        assert found.elements == expected.elements
        assert all(link.startswith("/") and not link.startswith("//") for link in found.links)
    assert any(attack in "".join(found.text) for found in attacked)


@given(text=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_no_text_changes_the_structure_of_a_page(text: str) -> None:
    """The same for anything that can be written."""
    plain, written = await skeletons("harmless"), await skeletons(text)
    assert [item.elements for item in written] == [item.elements for item in plain]


async def test_a_page_runs_and_loads_nothing_that_is_not_ours() -> None:
    """The policy allows own files only, and the pages need nothing else: no inline code, no CDN."""
    async with run_cluster(many(9)) as cluster:
        for path in (*PAGES[2:], "/", "/session?id=s001", "/nothing"):
            answer = await get(cluster.urls[0] + path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            if "html" in answer.headers["content-type"]:
                skeleton = Skeleton(answer.text)
                names = {name for _, attributes in skeleton.elements for name in attributes}
                assert not {name for name in names if name.startswith("on") or name == "style"}
                assert "style" not in {tag for tag, _ in skeleton.elements}
                scripts = [names for tag, names in skeleton.elements if tag == "script"]
                assert scripts == [("src", "defer")]
                assert all(link.startswith("/") for link in skeleton.links)


async def test_the_list_shows_sessions_with_search_and_next() -> None:
    """A page has the sessions that match, keeps the search and leads on to the next page."""
    log = many(120)
    async with run_cluster(log, count=2) as cluster:
        html = await page(cluster.urls[0] + "/?q=s0&status=open")
        assert 'value="s0"' in html
        assert '<option value="open" selected>' in html
        following = re.search(r'rel="next" href="([^"]+)"', html)
        assert following is not None
        second = await page(cluster.urls[1] + following[1].replace("&amp;", "&"))
        assert "First page" in second
        shown = re.findall(r'href="/session\?id=(\w+)"', html + second)
    found = [s for s in sorted(log.rows) if "s0" in s and log.record(s).status == "open"]
    assert shown == found
    assert len(found) > 50


async def test_an_empty_list_says_why() -> None:
    """Nothing yet, nothing that matches."""
    async with run_cluster(Log()) as cluster:
        assert "No session yet" in await page(cluster.urls[0] + "/")
        assert "No session matches" in await page(cluster.urls[0] + "/?q=x")
        assert "No timer is armed" in await page(cluster.urls[0] + "/timers")
        assert "None." in await page(cluster.urls[0] + "/dead-letters")


async def test_a_session_is_shown_with_all_that_an_operator_asks_for() -> None:
    """State, timers with their due time, commands, and a timeline with actions and reasons."""
    log = Log()
    log.start("s1")
    log.event("s1", "agent/data.captured", data={"nombre": "Ana", "ciudad": None})
    log.ask_for_data("s1")
    log.fall_due("s1", "data_collection.reply")
    log.offer("s1")
    log.start("s1")
    async with run_cluster(log, count=2) as cluster:
        pages = [await page(f"{url}/session?id=s1") for url in cluster.urls]
    due = log.record("s1").deadlines["promos.reply"].due_at_ms
    for html in pages:
        assert f'data-due="{due}"' in html
        assert 'data-watch="/api/sessions/s1"' in html
        assert f'data-offset="{log.record("s1").journal_offset}"' in html
        text = words_of(html)
        for words in (
            "nombre Ana",
            "ciudad \N{EN DASH}",
            "whatsapp.message.send awaiting",
            "promos awaiting_choice",
            "agent/collecting_data.started",
            "timer armed data_collection.reply",
            "timer fired data_collection.reply",
            "mode ofrecer_promos",
            "already_started",
            "Para continuar con tu pedido, necesito que me confirmes: telefono, ciudad, direccion",
            "Raw JSON",
        ):
            assert words in text, words


@pytest.mark.parametrize("session_id", ["..", ".", "a/b", "x y+z", "100%", "ñ&q=1#a", "//evil"])
async def test_the_link_of_a_session_leads_to_it(session_id: str) -> None:
    """Whatever its id: the page that the list links to is the session's."""
    log = Log()
    log.start(session_id)
    async with run_cluster(log, count=2) as cluster:
        links = Skeleton(await page(cluster.urls[0] + "/")).links
        (link,) = [item for item in links if item.startswith("/session?")]
        html = await page(cluster.urls[1] + link)
    assert session_id in words_of(html)
    assert "agent/session.started" in html


async def test_a_long_timeline_goes_on_on_the_next_page() -> None:
    """The newest come first; the pages together have every entry."""
    log = Log()
    log.start("s1")
    for number in range(150):
        log.message("s1", f"message {number}.")
    async with run_cluster(log) as cluster:
        first = await page(f"{cluster.urls[0]}/session?id=s1")
        following = re.search(r'rel="next" href="([^"]+)"', first)
        assert following is not None
        second = await page(cluster.urls[0] + following[1].replace("&amp;", "&"))
    messages = re.findall(r"<bdi>message (\d+)\.</bdi>", first + second)
    assert [int(number) for number in messages] == list(reversed(range(150)))
    assert "data-live" in first
    assert "data-live" not in second


async def test_timers_letters_and_workers_have_their_pages() -> None:
    """What is due next; what could not be accepted; who owns what, with sizes."""
    log = many(20)
    letter = {"reason": "invalid_json", "detail": "it ends early", "key": "s1", "value": "{"}
    source = {"topic": "agent.customer.message", "partition": 3, "offset": 17, "timestamp": 1}
    log.bury(0, orjson.dumps({**letter, "encoding": "utf-8", "source": source}))
    async with run_cluster(log, count=2) as cluster:
        timers = await page(cluster.urls[0] + "/timers")
        dues = [int(due) for due in re.findall(r'data-due="(\d+)"', timers)]
        assert dues == sorted(dues)
        assert len(dues) == sum(len(log.record(s).deadlines) for s in log.rows)
        letters = words_of(await page(cluster.urls[0] + "/dead-letters"))
        assert "invalid_json it ends early" in letters
        assert "agent.customer.message partition 3, offset 17" in letters
        await cluster.servers[1].stop()
        workers = words_of(await page(cluster.urls[0] + "/cluster"))
    assert "this one ready 2 of 4" in workers
    assert f"not ready The worker at {cluster.urls[1]} does not answer" in workers


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/session?id=nobody", 404, "There is no session of this id"),
        ("/session", 404, "There is no session of this id"),
        ("/?status=asleep", 400, "status is open or closed"),
        ("/timers?cursor=x", 400, "cursor is none of this list"),
    ],
)
async def test_an_error_is_a_page_too(path: str, status: int, words: str) -> None:
    """With the status of the error and a sentence for people."""
    async with run_cluster(Log()) as cluster:
        assert words in words_of(await page(cluster.urls[0] + path, status))


async def test_a_page_that_cannot_be_shown_now_tries_again() -> None:
    """503 with what is missing; the page refreshes itself."""
    async with run_cluster(many(5)) as cluster:
        cluster.workers[0].missing = "recovering partitions 0, 2"
        html = await page(cluster.urls[0] + "/", 503)
    assert "recovering partitions 0, 2" in html
    assert "data-live" in html


async def test_static_files_are_kept_until_they_change() -> None:
    """Their address has a hash of the content; nothing outside of the folder can be had."""
    async with run_cluster(Log()) as cluster:
        links = Skeleton(await page(cluster.urls[0] + "/")).links
        files = sorted({link for link in links if link.startswith("/static/")})
        assert [name.split("?")[0].rsplit(".", 1)[1] for name in files] == ["svg", "css", "js"]
        for name in files:
            answer = await get(cluster.urls[0] + name)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
        for name in ("nothing.css", "..%2Freads.py", "%2e%2e%2freads.py", "pages.css%00.js"):
            assert (await get(f"{cluster.urls[0]}/static/{name}")).status_code == 404
