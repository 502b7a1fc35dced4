"""HTML against text written by hand, and text without HTML against itself."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.cleaning.markup import strip_markup

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Rain &amp; shine</title>
<style>p > b { color: red }</style>
<script type="text/javascript">if (a < b && c > d) document.write("<p>no</p>");</script></head>
<body class=page>
  <!-- a comment with <b>tags</b> -->
  <h1>Weather</h1>
  <p>It rains in <a href="/m?a=1&amp;b=2">Madrid</a>,<br>at 5&nbsp;&deg;C &lt; 7.</p>
  <ul><li>one<li>two</ul>
  <table><tr><th>City</th><th>mm</th></tr><tr><td>Rome</td><td>3</td></tr></table>
  <pre><span>def f():</span>
<span>    </span><b>return</b> 1</pre>
  <iframe src="https://example.org">no frames</iframe><input type=checkbox checked> end
</body></html>
"""
TEXT = """Rain & shine
Weather
It rains in Madrid,
at 5\u00a0°C < 7.
one
two
City\tmm
Rome\t3
def f():
    return 1
 end
"""


def test_a_page():
    assert strip_markup(PAGE) == TEXT


STRIPPED = {
    "H<sub>2</sub>O": "H2O",
    "a<br>b<BR/>c": "a\nb\nc",
    "<P>One</P>\n\n<P>Two</P>": "One\nTwo",
    "&#72;&#x69; &quot;&eacute;&quot; &amp;lt;": 'Hi "é" &lt;',
    "1 &lt; 2 &amp;&amp; 3 > 2": "1 < 2 && 3 > 2",
    "<div\n class='a'\n>x</div >": "x",
    "<b>a < b</b>": "a < b",
    "tail of a page</div></body>": "tail of a page",
    '<a href="x">cut': "cut",
    "<script>x</script><style>y</style>": "",
}


@pytest.mark.parametrize("text", STRIPPED)
def test_markup_goes(text):
    assert strip_markup(text) == STRIPPED[text]


KEPT = [
    "a < b",
    "if a<b and c>d: pass",
    "for (i=0; i<n; i++) { x = a<b; y = c>d; }",
    "std::vector<int> v; Map<String, List<Integer>> m; f<a, b>(c)",
    "#include <stdio.h>",
    "a<b>c",
    '"<input>" "<source>" "<stdin>"',
    "x <- 3; y <<= 2; cat <<EOF >>file; 1 <3",
    "f(&x, &y); a && b; AT&T; ?a=1&copy=2&lt=3; R&D;",
    "<name@example.org>, <https://example.org>",
    "<script> is opened and never closed",
    "<!-- neither is this",
    "<widget>not HTML</widget>",
    "</",
    "<",
    "&",
    "  spaces \r\n and\ttabs \n\n stay ",
]


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_markup_stays(text):
    assert strip_markup(text) == text


@settings(deadline=None)
@given(st.text().filter(lambda text: "<" not in text and "&" not in text))
def test_text_without_markup_is_unchanged(text):
    assert strip_markup(text) == text


@settings(deadline=None)
@given(st.text(alphabet="ab1 <>&;=!-/\n\"'#"))
def test_text_without_names_of_elements_or_entities_loses_nothing(text):
    if not any(f"<{mark}" in text for mark in ("a", "b", "/a", "/b", "!--")) and "&#" not in text:
        assert strip_markup(text) == text


@settings(deadline=None)
@given(st.text().filter(lambda text: text.strip() == text and "\r" not in text))
def test_what_is_escaped_comes_back(text):
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert strip_markup(f"<p>{escaped}</p>") == text


@pytest.mark.parametrize("unit", ["<a b='", "<!--", "<a ", "&", '<a x="', "</", "<p>", "<a b c=d"])
def test_time_grows_with_length_alone(unit):
    def seconds(repeats):
        start = time.process_time()
        strip_markup(unit * repeats)
        return time.process_time() - start

    assert seconds(40_000) < 1  # a quadratic search would take minutes
