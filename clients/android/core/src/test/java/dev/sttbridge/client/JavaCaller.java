package dev.sttbridge.client;

import java.io.Closeable;
import java.util.Arrays;
import java.util.StringJoiner;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** How a session reads in Java; everything of it compiles without Kotlin at hand. */
final class JavaCaller {
    private JavaCaller() {}

    static String transcript(String url, byte[] audio) throws Exception {
        SttOptions options = new SttOptions.Builder().sampleRate(16_000).phrases(Arrays.asList("turn it off")).build();
        StringJoiner text = new StringJoiner(" ");
        CountDownLatch ended = new CountDownLatch(1);
        ExecutorService executor = Executors.newSingleThreadExecutor();
        SttListener listener = new SttListener() {
            @Override
            public void onFinal(SttEvent.Final event) {
                text.add(event.getText());
            }

            @Override
            public void onEnded(SttEvent.Ended event) {
                ended.countDown();
            }
        };
        try (SttClient client = new SttClient.Builder(url)
                        .options(options)
                        .reconnect(new Reconnect.Builder().firstMillis(5_000).build())
                        .blockingTokens(refused -> null)
                        .build();
                Closeable listening = client.listen(executor, listener)) {
            client.start();
            for (int at = 0; at < audio.length; at += 3_200) {
                client.offer(audio, at, Math.min(3_200, audio.length - at));
            }
            client.stop();
            if (!ended.await(20, TimeUnit.SECONDS)) {
                throw new AssertionError("it did not end");
            }
            return text.toString();
        } finally {
            executor.shutdown();
        }
    }
}
